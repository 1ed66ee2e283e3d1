"""Files of weights: writing, reading, converting published ones, downloading them, and LoRA adapters."""
