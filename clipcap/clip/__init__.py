"""Photos and texts -> CLIP embeddings; what worker processes need to decode pictures imports no torch."""
