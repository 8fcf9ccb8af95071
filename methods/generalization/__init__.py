"""Methods that generalise better: to clean images, to larger radii and other norms, to attacks never seen in training."""
