"""The .pt file: written, read, converted from published shapes, downloaded, adapted by LoRA."""
