"""Methods that train several networks and predict with all of them."""
