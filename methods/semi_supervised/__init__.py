"""Methods that learn from unlabelled images as well."""
