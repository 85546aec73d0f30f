"""Which encoder weights move, and how fast."""
