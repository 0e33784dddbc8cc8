"""One file for each pattern, named after it. They do not know each other."""
