"""Prefix to caption tokens: greedy, nucleus and beam search over a cached language model."""
