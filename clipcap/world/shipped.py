"""Where the demo world's weights are, and the defaults that `--demo` gives each script.

A small world of drawn scenes with its own tiny CLIP, GPT-2 and literal captioner shows the whole project offline. Only
these defaults differ from the use with real data:

    python load_data.py --demo
    python basic_finetuning.py --demo
    python -m demo.draw
    python predict.py --demo runs/demo/photos --output runs/demo/captions.jsonl
    python -m demo.show

Pictures are drawn by `drawing`, `subjects`, `settings` and `scenes`, captions are written by `captions` and read by
`judge`. How the weights were trained is in `demo.build`, in the repository's folder `demo`.
"""

from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"
LITERAL = WEIGHTS / "literal_weights.pt"
CLIP = WEIGHTS / "clip"
GPT2 = WEIGHTS / "gpt2"

RUNS = "runs/demo"
DATA = f"{RUNS}/data"
FINE_TUNED = f"{RUNS}/base/base_weights.pt"
PHOTOS = f"{RUNS}/photos"  # `demo.draw` writes the held-out pictures here
CAPTIONS = f"{RUNS}/captions.jsonl"  # predict.py writes their captions here
ARCHIVE = f"{RUNS}/instagram_export.zip"  # `demo.archive` writes one person's posts here
PAGE = f"{RUNS}/pictures.html"

LOAD_DATA: dict[str, Any] = {"source": ["demo"], "clip": "demo", "output": DATA}
FINE_TUNING: dict[str, Any] = {
    "data": DATA,
    "init": "demo",
    "epochs": 4,
    "learning_rate": 3e-3,
    "evals_per_epoch": 1,
}
PREDICT: dict[str, Any] = {"weights": FINE_TUNED}
EVALUATE: dict[str, Any] = {"data": DATA}
