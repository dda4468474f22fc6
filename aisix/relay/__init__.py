"""Stage 6: the answer goes back, edited event by event."""
