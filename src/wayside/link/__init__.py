"""What goes over the one connection to a hub."""
