"""Stage 4: may it pass. Token buckets and concurrency, reserved and settled."""
