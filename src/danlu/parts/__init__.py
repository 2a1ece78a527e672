"""Layers: what architectures are built from."""
