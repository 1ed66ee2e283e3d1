"""Photos and texts to CLIP embeddings; its decoding half needs no torch."""
