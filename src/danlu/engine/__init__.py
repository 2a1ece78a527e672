"""The engine: what runs a model and a method on data."""
