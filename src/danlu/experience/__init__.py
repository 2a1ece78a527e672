"""Sources that act: what comes of an agent's steps, and what is remembered of them."""
