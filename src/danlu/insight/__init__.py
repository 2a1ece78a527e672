"""How a person sees that a run will go well, goes well and went well."""
