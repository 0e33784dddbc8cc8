"""The embedded engine: streams in memory, and in SQLite with group commit."""
