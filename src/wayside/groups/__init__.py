"""Consumer groups: members that share the records of streams."""
