"""Methods that generalise better: to clean images, or to attacks, norms and radii that training has not seen."""
