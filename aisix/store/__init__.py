"""Durable resources in SQLite."""
