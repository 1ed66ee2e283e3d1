"""The four strategies' common part: arguments, the experiment, the loop, its saved state."""
