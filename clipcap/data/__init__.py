"""Images and captions, from any source -> one dataset on disk with its CLIP embeddings."""
