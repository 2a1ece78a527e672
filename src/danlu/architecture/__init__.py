"""Architectures: one file a family, with its config, its wiring and its weight names in the hub format."""
