"""The engine room: the same results sooner. A reader may skip it."""
