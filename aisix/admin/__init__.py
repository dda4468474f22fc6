"""Control plane: schemas, use cases and documents of the admin API."""
