"""Code that gives the same results sooner and can be switched off; a reader may skip it."""
