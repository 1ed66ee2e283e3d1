"""A small world of drawn scenes with its own tiny CLIP, GPT-2 and literal captioner: the whole project, offline.

`--demo` sets the defaults of the scripts to these files and sizes; nothing else differs from real data:

    python load_data.py --demo
    python basic_finetuning.py --demo
    python -m clipcap.demo.draw
    python predict.py --demo runs/demo/photos --output runs/demo/captions.jsonl
    python -m clipcap.demo.show

Drawing: `drawing`, `subjects`, `settings`, `scenes`. Writing: `captions`, `corpus`. What was trained on it and how:
`build`. Reading a caption: `judge`.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
LITERAL = WEIGHTS / "literal_weights.pt"
CLIP = WEIGHTS / "clip"
GPT2 = WEIGHTS / "gpt2"

RUNS = "runs/demo"
DEFAULTS = {
    "data": f"{RUNS}/data",
    "init": "demo",
    "clip": "demo",
    "weights": f"{RUNS}/base/base_weights.pt",
    "epochs": 4,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "evals_per_epoch": 1,
}
PHOTOS = f"{RUNS}/photos"  # `draw` writes the held-out pictures here
CAPTIONS = f"{RUNS}/captions.jsonl"  # what predict.py says about them
PAGE = f"{RUNS}/pictures.html"
