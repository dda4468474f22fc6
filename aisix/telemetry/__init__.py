"""Stage 8: what happened. Metrics, logs, the access line."""
