"""A dataset of millions of captions: how long it takes to make, to open and to read, and how much memory.

    python -m benchmarks.large_store FOLDER --rows 3000000

The embeddings are random, so that no image has to be drawn and no CLIP to run: what is measured is everything else.
FOLDER needs room for twice the dataset, 4 KB for each row at 512 numbers.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clipcap.cli.processes import Processes
from clipcap.data.cleaning import Cleaning
from clipcap.data.embed import write_shards
from clipcap.data.examples import Example, Listing
from clipcap.data.selection import select
from clipcap.data.shards import Shards
from clipcap.data.sources import SourceArguments
from clipcap.data.store import EmbeddingStore
from clipcap.data.writer import DatasetWriter, claim_folder

WIDTH = 512
WORDS = [
    "golden",
    "hour",
    "on",
    "the",
    "beach",
    "with",
    "my",
    "favourite",
    "people",
    "#sunset",
    "#love",
    "🌅",
    "never",
    "gets",
    "old",
]


def examples(rows: int) -> Iterator[Example]:
    """Posts of 2 to 9 phrases with random embeddings, 4,096 of which are drawn and then repeated."""
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((4096, WIDTH), dtype=np.float32)
    for number in range(rows):
        caption = f"{' '.join(WORDS[: 2 + number % 8])} {number}"
        yield Example(str(number), (caption,), clip_embedding=vectors[number % 4096])


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print how long a step took, the most memory so far, pages of files included, and what is the process's own."""
    started, cpu = time.perf_counter(), time.process_time()
    yield
    took, worked = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own = int(status["RssAnon"].split()[0]) / 2**20
    print(f"{name}: {took:.1f} s, {worked:.1f} s of CPU; peak {peak:.2f} GiB, now {own:.2f} GiB its own", flush=True)


def main() -> None:
    """Make the dataset, unless it is there, then open and read it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=3_000_000)
    args = parser.parse_args()
    clip = {"model": "ViT-B/32", "pretrained": "openai", "dim": WIDTH}
    if not (args.folder / "dataset.json").is_file():
        with step("list, clean and divide"):
            kept, cleaned = select(Listing(lambda: examples(args.rows)), Cleaning(), SourceArguments())
        with step("fingerprint"):
            shards = Shards(kept)
        claim_folder(args.folder)
        writer = DatasetWriter(args.folder, {"clip": clip}, shards)
        with step("begin"):
            writer.begin()
        with step("write shards"):
            write_shards(writer, writer.missing(), None, WIDTH, 128, 0, Processes())
        with step("join"):
            writer.finish({"source": {"name": "synthetic"}, "clip": clip, "cleaning": cleaned})
    with step("open"):
        store = EmbeddingStore.open(args.folder)
    with step("find the rows, check captions"):
        embeddings = store.embeddings("train")
    draw = np.random.default_rng(1)
    with step("read 1,000 random batches of 32"):
        for _ in range(1000):
            embeddings[draw.integers(len(embeddings), size=32)].sum()
    with step("read all captions"):
        captions = store.captions("train")
    print(f"{len(captions)} captions for training")


if __name__ == "__main__":
    main()
