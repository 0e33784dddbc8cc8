"""From bytes to a pattern."""
