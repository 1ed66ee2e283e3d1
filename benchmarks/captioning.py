"""Captioning: folders end to end, one photo, embedding alone, decoding alone, and the stages between.

Every function measures one or several comparisons; see `benchmarks.run` for how they are chosen and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import floors, published
from benchmarks.alternative import Alternative
from benchmarks.plan import Plan
from benchmarks.setting import Setting
from benchmarks.timing import Contender, Measurement
from clipcap.captioning.captioner import CLIP_BATCH, Captioner
from clipcap.captioning.options import decoding_and_rules
from clipcap.clip.encoder import ClipEncoder
from clipcap.clip.images import load_pixels
from clipcap.clip.workers import pixel_batches
from clipcap.data.embed import embed_shards, to_rows
from clipcap.data.examples import Example
from clipcap.data.shards import Shards
from clipcap.decoding.options import SEQUENCES, Decoding

END_TO_END, STAGES = "Captioning, end to end", "Stages alone"
NO_STOP = -1  # no caption ends early: all contenders decode the same number of tokens
ALTERNATIVE_BATCH = 32
BATCHES = {"CLIP": CLIP_BATCH, "sequences decoded": SEQUENCES, "alternative": ALTERNATIVE_BATCH}


def decoding(method: str, tokens: int) -> Decoding:
    """The options of one of `alternative.METHODS`, without an early end."""
    return Decoding(method=method, max_tokens=tokens, stop_token=NO_STOP)


def folder_greedy(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """A folder in the device's fast precision, beside both baselines and beside its own stages."""
    yield _folder(setting, plan, "folder", "greedy", tokens=20, photos=512, baseline=4, stages=True)


def folder_fp32(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """The same in float32, where the captions must be the published loop's."""
    yield _folder(setting, plan, "folder fp32", "greedy", tokens=20, photos=256, baseline=4, exact=True)


def folder_precisions(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """Ours alone, in each precision that a user would choose on this device."""
    folder, search = setting.photos(plan.photos(256)), decoding("greedy", 20)
    captioners = {"fp32": setting.captioner(torch.float32)}
    if setting.fast == torch.bfloat16:
        captioners["bf16"] = setting.captioner(torch.bfloat16)
    if setting.device.type == "cpu":
        captioners["int8"] = setting.captioner(setting.fast, int8=True)
    contenders = [
        Contender(name, partial(rows, captioner, folder, search), len(folder), warm_up=40)
        for name, captioner in captioners.items()
    ]
    yield plan.alternate(END_TO_END, "precisions", "images/s", contenders)


def folder_long(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """The same at the length where the published code stops."""
    yield _folder(setting, plan, "folder 67 tokens", "greedy", tokens=67, photos=128, baseline=1)


def folder_beam(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """The same with beam search."""
    yield _folder(setting, plan, "folder beam 5", "beam", tokens=20, photos=128, baseline=2)


def folder_nucleus(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """The same with nucleus sampling, which the published loop does not have."""
    yield _folder(setting, plan, "folder nucleus", "nucleus", tokens=20, photos=256)


def folder_small(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """So few photos that nothing can be overlapped for long."""
    yield _folder(setting, plan, "folder of 16", "greedy", tokens=20, photos=16, baseline=4)


def _folder(
    setting: Setting,
    plan: Plan,
    name: str,
    method: str,
    tokens: int,
    photos: int,
    baseline: int = 0,
    stages: bool = False,
    exact: bool = False,
) -> Measurement:
    """Photos -> captions, everything included.

    Args:
        baseline: photos that the published loop gets in a round; 0 leaves it out.
        stages: whether each stage is measured alone as well.
        exact: in float32 on every device, and with a count of the captions that are the published loop's.
    """
    dtype = torch.float32 if exact else setting.fast
    folder = setting.photos(plan.photos(photos))
    captioner = setting.captioner(dtype)
    search = decoding(method, tokens)
    size = SEQUENCES // search.width
    work = floors.clip_image(setting.sizes, CLIP_BATCH, dtype)
    work += floors.caption(captioner.model, tokens, size, dtype, search.width)
    contenders = [Contender("ours", partial(rows, captioner, folder, search), len(folder), work, warm_up=40)]
    loop = setting.published(setting.model())
    if baseline:
        beams = search.width
        run = partial(one_by_one, loop, folder, tokens, beams)
        contenders.append(Contender("published", run, plan.baseline(baseline)))
    if dtype == setting.fast:
        run = partial(in_batches, setting.alternative(captioner.model), folder, method, tokens)
        batches = 2 if tokens * search.width <= 20 else 1
        contenders.append(Contender("alternative", run, min(batches * ALTERNATIVE_BATCH, len(folder)), warm_up=8))
    if stages:
        contenders += _stages_of_folder(captioner, folder, search)
    found = plan.alternate(END_TO_END, name, "images/s", contenders)
    if exact:
        found.notes += _identical(captioner, loop, folder[: plan.baseline(8)], search)
    return found


def _identical(
    captioner: Captioner, loop: published.PublishedClipCap, photos: Sequence[Path], search: Decoding
) -> list[str]:
    """How many captions are the published loop's: from the photos themselves, and from the loop's own embeddings."""
    theirs = one_by_one(loop, photos, search.max_tokens, 1, len(photos))
    with torch.no_grad():
        embeddings = torch.cat([loop.embed(photo) for photo in photos])
    ours = {
        "photos, which ours decodes at a reduced size": [
            row.captions[0] for row in captioner.rows(photos, *decoding_and_rules(search))
        ],
        "the same embeddings": [
            captioner.tokenizer.decode(found[0]) for found in captioner.model.generate_all(embeddings, search)
        ],
    }
    return [
        f"{sum(a == captioner.tokenizer.decode(b) for a, b in zip(captions, theirs, strict=True))} of {len(theirs)} "
        f"captions identical to the published loop's from {origin}"
        for origin, captions in ours.items()
    ]


def rows(captioner: Captioner, folder: Sequence[Path], search: Decoding, count: int) -> list:
    """What predict.py does with a folder."""
    return list(captioner.rows(folder[:count], *decoding_and_rules(search)))


def one_by_one(
    loop: published.PublishedClipCap, folder: Sequence[Path], tokens: int, beams: int, count: int
) -> list[list[int]]:
    """What the published code does with a folder."""
    return [published.caption(loop, photo, tokens, NO_STOP, beams) for photo in folder[:count]]


def in_batches(pipeline: Alternative, folder: Sequence[Path], method: str, tokens: int, count: int) -> list[list[int]]:
    """What one would do with a folder instead."""
    return list(pipeline.caption(folder[:count], method, tokens, None, ALTERNATIVE_BATCH))


def _stages_of_folder(captioner: Captioner, folder: Sequence[Path], search: Decoding) -> list[Contender]:
    """The stages of `rows`, each alone and in the batches that it gets there."""
    encoder = captioner.encoder
    pixels = _pixels(encoder, folder, CLIP_BATCH)
    embeddings = encoder.encode_pixels(pixels).repeat(SEQUENCES // len(pixels) + 1, 1)[:SEQUENCES]

    def read(count: int) -> None:
        for _ in pixel_batches(folder[:count], encoder.preprocessing, SEQUENCES):
            pass

    def embed(count: int) -> None:
        for _ in range(0, count, len(pixels)):
            encoder.encode_pixels(pixels)

    def decode(count: int) -> None:
        for _ in range(0, count, len(embeddings)):
            captioner.model.generate(embeddings, search)

    return [
        Contender("stage: JPEG", read, len(folder), warm_up=40),
        Contender("stage: CLIP", embed, 2 * len(pixels)),
        Contender("stage: decoding", decode, len(embeddings)),
    ]


def _pixels(encoder: ClipEncoder, folder: Sequence[Path], count: int) -> np.ndarray:
    distinct = [load_pixels(photo, encoder.preprocessing) for photo in folder[: min(count, 16)]]
    return np.stack([distinct[number % len(distinct)] for number in range(count)])


def single_photo(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """One photo at a time, everything loaded: what a user waits for in a notebook."""
    captioner, tokens = setting.captioner(setting.fast), 20
    folder = setting.photos(plan.photos(16))
    loop = setting.published(setting.model())
    work = floors.clip_image(setting.sizes, 1, setting.fast) + floors.caption(captioner.model, tokens, 1, setting.fast)

    def ours(count: int) -> None:
        for photo in folder[:count]:
            captioner([photo], decoding("greedy", tokens))

    contenders = [
        Contender("ours", ours, plan.baseline(8), work),
        Contender("published", partial(one_by_one, loop, folder, tokens, 1), plan.baseline(4)),
    ]
    yield plan.alternate(END_TO_END, "single photo", "images/s", contenders)


def embedding(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """Photos -> embeddings, as load_data.py makes them: up to the rows that it writes."""
    folder = setting.photos(plan.photos(512))
    encoder = setting.encoder(setting.fast)
    model = setting.model()
    loop, pipeline = setting.published(model), setting.alternative(model.to(setting.fast))

    def ours(count: int) -> None:
        shards = Shards([Example(photo.stem, ("",), photo) for photo in folder[:count]])
        for shard, results in embed_shards(shards, encoder, CLIP_BATCH):
            to_rows(shard, results, encoder.dim)

    @torch.no_grad()
    def singly(count: int) -> None:
        for photo in folder[:count]:
            loop.embed(photo)

    def batched(count: int) -> None:
        for start in range(0, count, ALTERNATIVE_BATCH):
            pipeline.embed(folder[start : min(start + ALTERNATIVE_BATCH, count)])

    contenders = [
        Contender("ours", ours, len(folder), floors.clip_image(setting.sizes, CLIP_BATCH, setting.fast), warm_up=40),
        Contender("published", singly, plan.baseline(16)),
        Contender("alternative", batched, min(2 * ALTERNATIVE_BATCH, len(folder)), warm_up=8),
    ]
    yield plan.alternate(STAGES, "embedding", "images/s", contenders)


def clip_batches(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """CLIP alone, from pixels, beside open_clip in the same precision."""
    encoder = setting.encoder(setting.fast)
    theirs = setting.alternative(setting.model(setting.fast)).clip
    folder = setting.photos(plan.photos(16))
    for batch in plan.batches:
        pixels = _pixels(encoder, folder, batch)
        images = torch.randn(batch, 3, *encoder.preprocessing.size, device=setting.device, dtype=setting.fast)
        contenders = [
            _repeated("ours", partial(encoder.encode_pixels, pixels), batch),
            _repeated("alternative", torch.inference_mode()(partial(theirs.encode_image, images)), batch),
        ]
        contenders[0].work = floors.clip_image(setting.sizes, batch, setting.fast)
        yield plan.alternate(STAGES, f"CLIP, batch {batch}", "images/s", contenders)


def mapping_batches(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """The mapping network alone."""
    model = setting.model(setting.fast)
    for batch in plan.batches:
        run = torch.inference_mode()(partial(model.prefix, torch.randn(batch, model.config.clip_dim)))
        yield plan.alternate(STAGES, f"mapping, batch {batch}", "images/s", [_repeated("ours", run, batch, least=512)])


def decoding_batches(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """Embeddings -> captions of 20 tokens, beside Hugging Face's `generate` in the same precision."""
    model, tokens = setting.decoder(setting.fast), 20
    theirs = Alternative(torch.nn.Identity(), torch.nn.Identity(), model.clip_project, model.gpt)
    for method in ("greedy", "nucleus", "beam"):
        search = decoding(method, tokens)
        for batch in plan.batches:
            embeddings = torch.randn(batch, model.config.clip_dim)
            work = floors.caption(model, tokens, batch, setting.fast, search.width)
            contenders = [
                _repeated("ours", partial(model.generate, embeddings, search), batch),
                _repeated("alternative", partial(theirs.generate, embeddings, method, tokens, None), batch),
            ]
            contenders[0].work = work
            yield plan.alternate(STAGES, f"decoding {method}, batch {batch}", "captions/s", contenders)


def _repeated(name: str, run: Callable[[], object], batch: int, least: int = 8) -> Contender:
    """A contender that does whole batches, at least `least` items a round."""

    def repeat(count: int) -> None:
        for _ in range(0, count, batch):
            run()

    return Contender(name, repeat, batch * -(-least // batch))
