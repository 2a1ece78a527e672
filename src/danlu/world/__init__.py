"""Environments: what is acted in."""
