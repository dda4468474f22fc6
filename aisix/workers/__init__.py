"""Several processes that are one gateway: their number, their talk, and what each of them runs."""
