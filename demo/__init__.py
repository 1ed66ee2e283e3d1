"""What draws, builds and shows the demo world."""
