"""From clients' answers to a direction."""
