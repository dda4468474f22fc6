"""Shared vocabulary of every stage: values and protocols. Stdlib only, no clock, no I/O."""
