"""Stage 3: which deployment serves the alias, and how healthy it is."""
