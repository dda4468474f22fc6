"""Stage 2: who is calling. Credentials of callers and admins."""
