"""Methods that begin with a weak adversary and let it grow with the network."""
