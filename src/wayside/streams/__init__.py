"""What the hub makes of any engine: followers, unions, delays, presence."""
