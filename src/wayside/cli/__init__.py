"""The `wayside` command: a file for each group of commands, and what commands alone need."""
