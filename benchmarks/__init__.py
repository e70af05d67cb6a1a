"""Each speed claim, as a ratio to a peer in the same run: ``make bench``."""
