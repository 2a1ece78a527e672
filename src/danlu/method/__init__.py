"""Methods: how a model learns; one file each, readable beside its paper."""
