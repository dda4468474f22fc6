"""Stage 7: what it cost, read from the answer."""
