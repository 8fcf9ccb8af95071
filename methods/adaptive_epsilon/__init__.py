"""A radius that follows the image or the training, in place of one for all."""
