"""Ways to read or write one log: a file each. None imports another, none knows what stores the log."""
