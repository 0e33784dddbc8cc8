"""The `wayside` command, and nothing but commands."""
