"""Images and captions, from wherever they lie, to one dataset on disk with its CLIP embeddings."""
