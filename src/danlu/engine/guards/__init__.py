"""Guards: small objects beside the loop, each of which knows one thing and speaks one sentence."""
