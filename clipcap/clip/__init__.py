"""Photos and texts -> CLIP embeddings; the modules that decode pictures do not import torch."""
