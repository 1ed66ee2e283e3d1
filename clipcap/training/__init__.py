"""What the four strategies have in common: their arguments, the experiment, the training loop and its saved state."""
