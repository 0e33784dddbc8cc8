"""The engine that keeps records on the local disk, in SQLite."""
