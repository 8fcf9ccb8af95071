"""Methods that make adversarial training cheap."""
