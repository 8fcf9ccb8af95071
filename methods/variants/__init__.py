"""Methods that change what is trained on: other distributions, other losses, other labels, mixtures of images."""
