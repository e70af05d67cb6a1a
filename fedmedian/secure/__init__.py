"""Secure sums: the server opens the sum of the clients' votes, and no single vote."""
