"""What the hub makes of any engine: streams in memory, appends and their commits, followers, unions, delays, presence."""
