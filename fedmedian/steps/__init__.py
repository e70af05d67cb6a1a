"""What clients do to an update before it is sent, and the messages that say so."""
