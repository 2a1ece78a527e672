"""Danlu: one padding-free training system."""
