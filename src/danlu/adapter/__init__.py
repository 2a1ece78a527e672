"""Adapters: one file a kind, acting on named modules of any architecture; no model knows of them."""
