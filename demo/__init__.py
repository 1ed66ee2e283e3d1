"""Draws, builds and shows the demo world."""
