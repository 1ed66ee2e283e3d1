"""Captioning: folders end to end, one photo, embedding alone, decoding alone, and the stages between.

Every function measures one or several comparisons; see `benchmarks.run` for how they are chosen and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import floors, published
from benchmarks.alternative import Alternative
from benchmarks.engines import Apart, ctranslate2, llama
from benchmarks.plan import Plan
from benchmarks.published import PublishedClipCap
from benchmarks.setting import OURS, Setting
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
SMALL_BATCH = 32
BATCHES = {"CLIP": CLIP_BATCH, "sequences decoded": SEQUENCES}  # at most: ours decodes fewer at first


def decoding(method: str, tokens: int) -> Decoding:
    """The options of one of `alternative.METHODS`, without an early end."""
    return Decoding(method=method, max_tokens=tokens, stop_token=NO_STOP)


def folder_greedy(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """Ours in each precision, its peers, the published loop, and the stages of ours."""
    folder, search = setting.photos(plan.photos(256)), decoding("greedy", 20)
    captioners = {name: setting.captioner(precision) for name, precision in setting.precisions.items()}
    contenders = [_ours(setting, name, captioner, folder, search) for name, captioner in captioners.items()]
    pipeline, loop = setting.alternative(setting.model(setting.fast)), setting.published(setting.model())
    contenders += [_assembled(pipeline, folder, search), _assembled(pipeline, folder, search, SMALL_BATCH)]
    contenders.append(_published(plan, loop, folder, search, photos=4))
    with absent("llama.cpp") as notes:
        contenders += _llama(setting, pipeline, folder, search)
    contenders += _stages_of_folder(captioners[OURS], folder, search)
    found = plan.alternate(END_TO_END, "folder", "images/s", contenders)
    found.notes += notes + _identical(setting.captioner("fp32"), loop, folder[: plan.baseline(8, folder)], search)
    yield found


def folder_long(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """The same at the length where the published code stops."""
    yield _folder(setting, plan, "folder 67 tokens", decoding("greedy", 67), photos=64, baseline=1)


def folder_beam(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """The same with beam search."""
    yield _folder(setting, plan, "folder beam 5", decoding("beam", 20), photos=51, baseline=1)


def folder_nucleus(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """The same with nucleus sampling, which the published loop does not have."""
    yield _folder(setting, plan, "folder nucleus", decoding("nucleus", 20), photos=128)


def folder_small(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """So few photos that nothing can be overlapped for long."""
    yield _folder(setting, plan, "folder of 16", decoding("greedy", 20), photos=16, baseline=4)


def _folder(setting: Setting, plan: Plan, name: str, search: Decoding, photos: int, baseline: int = 0) -> Measurement:
    """Photos -> captions, everything included; the published loop gets `baseline` of them in a round."""
    folder = setting.photos(plan.photos(photos))
    contenders = [_ours(setting, OURS, setting.captioner(), folder, search)]
    contenders.append(_assembled(setting.alternative(setting.model(setting.fast)), folder, search))
    if baseline:
        contenders.append(_published(plan, setting.published(setting.model()), folder, search, baseline))
    return plan.alternate(END_TO_END, name, "images/s", contenders)


def _ours(setting: Setting, name: str, captioner: Captioner, folder: Sequence[Path], search: Decoding) -> Contender:
    """What predict.py does, in the precision of this contender."""
    dtype, size = setting.dtype(setting.precisions[name]), min(SEQUENCES // search.width, len(folder))
    work = floors.clip_image(setting.sizes, CLIP_BATCH, dtype)
    work += floors.caption(captioner.model, search.max_tokens, size, dtype, search.width)
    return Contender(name, partial(rows, captioner, folder, search), len(folder), work, warm_up=40)


def _assembled(pipeline: Alternative, folder: Sequence[Path], search: Decoding, batch: int = SEQUENCES) -> Contender:
    """The pipeline that one would assemble, in batches as large as ours or in those of most examples."""
    size = min(batch // search.width, len(folder))
    run = partial(in_batches, pipeline, folder, search.method, search.max_tokens, size)
    name = f"alternative, batch {batch}" if batch == SMALL_BATCH else "alternative"
    return Contender(name, run, min(2 * size, len(folder)), warm_up=8)


def _published(plan: Plan, loop: PublishedClipCap, folder: Sequence[Path], search: Decoding, photos: int) -> Contender:
    run = partial(one_by_one, loop, folder, search.max_tokens, search.width)
    return Contender("published", run, plan.baseline(photos, folder))


def _llama(setting: Setting, pipeline: Alternative, folder: Sequence[Path], search: Decoding) -> list[Contender]:
    """On a CPU: open_clip and the mapping network in batches, then llama.cpp."""
    if setting.device.type != "cpu":
        return []
    count, tokens = min(SEQUENCES, len(folder)), search.max_tokens
    engine = llama(setting.model().gpt, setting.folder / "gpt2.gguf", count, setting.sizes.prefix_length + tokens)

    @torch.inference_mode()
    def run(count: int) -> None:
        prefix = pipeline.clip_project(pipeline.embed(folder[:count]))
        engine.generate(prefix.float().numpy(), tokens)

    return [Contender("llama.cpp", run, count, warm_up=8)]


@contextmanager
def absent(package: str) -> Iterator[list[str]]:
    """A list that says so afterwards where a peer is not installed."""
    notes: list[str] = []
    try:
        yield notes
    except ImportError as error:
        notes.append(f"{package} was not measured: {error}")


def _identical(captioner: Captioner, loop: PublishedClipCap, photos: Sequence[Path], search: Decoding) -> list[str]:
    """How many captions are the published loop's: from the photos themselves, and from the loop's own embeddings."""
    decode = captioner.tokenizer.decode
    theirs = [decode(ids).strip() for ids in one_by_one(loop, photos, search.max_tokens, 1, len(photos))]
    with torch.no_grad():
        embeddings = torch.cat([loop.embed(photo) for photo in photos])
    ours = {
        "photos, which ours decodes at a reduced size": [
            row.captions[0] for row in captioner.rows(photos, *decoding_and_rules(search))
        ],
        "the same embeddings": [decode(found[0]).strip() for found in captioner.model.generate_all(embeddings, search)],
    }
    return [
        f"{sum(a == b for a, b in zip(captions, theirs, strict=True))} of {len(theirs)} "
        f"captions identical to the published loop's from {origin}"
        for origin, captions in ours.items()
    ]


def rows(captioner: Captioner, folder: Sequence[Path], search: Decoding, count: int) -> list:
    """What predict.py does with a folder."""
    return list(captioner.rows(folder[:count], *decoding_and_rules(search)))


def one_by_one(loop: PublishedClipCap, folder: Sequence[Path], tokens: int, beams: int, count: int) -> list[list[int]]:
    """What the published code does with a folder."""
    return [published.caption(loop, photo, tokens, NO_STOP, beams) for photo in folder[:count]]


def in_batches(
    pipeline: Alternative, folder: Sequence[Path], method: str, tokens: int, batch: int, count: int
) -> list[list[int]]:
    """What one would do with a folder instead."""
    return list(pipeline.caption(folder[:count], method, tokens, None, batch))


def _stages_of_folder(captioner: Captioner, folder: Sequence[Path], search: Decoding) -> list[Contender]:
    """The stages of `rows`, each alone and in full batches."""
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
    folder, search = setting.photos(16), decoding("greedy", 20)
    count, contenders = plan.baseline(8, folder), []
    for name, precision in setting.precisions.items():
        captioner, dtype = setting.captioner(precision), setting.dtype(precision)
        work = floors.clip_image(setting.sizes, 1, dtype) + floors.caption(captioner.model, 20, 1, dtype)
        contenders.append(Contender(name, partial(singly, partial(captioner, decoding=search), folder), count, work))
    pipeline = setting.alternative(setting.model(setting.fast))

    def assembled(photos: Sequence[Path]) -> list[list[int]]:
        return in_batches(pipeline, photos, search.method, search.max_tokens, batch=1, count=1)

    contenders.append(Contender("alternative", partial(singly, assembled, folder), count))
    contenders.append(_published(plan, setting.published(setting.model()), folder, search, photos=4))
    yield plan.alternate(END_TO_END, "single photo", "images/s", contenders)


def singly(caption: Callable[[Sequence[Path]], object], folder: Sequence[Path], count: int) -> None:
    """Photo by photo, none of which is opened before the caption of the one before is there."""
    for photo in folder[:count]:
        caption([photo])


def embedding(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """Photos -> embeddings, as load_data.py makes them: up to the rows that it writes."""
    folder = setting.photos(plan.photos(256))
    encoder = setting.encoder()
    model = setting.model()
    loop, pipeline = setting.published(model), setting.alternative(model.to(setting.fast))

    def ours(count: int) -> None:
        shards = Shards([Example(photo.stem, ("",), photo) for photo in folder[:count]])
        for shard, results in embed_shards(shards, encoder, CLIP_BATCH):
            to_rows(shard, results, encoder.dim)

    @torch.no_grad()
    def one_at_a_time(count: int) -> None:
        for photo in folder[:count]:
            loop.embed(photo)

    def batched(count: int) -> None:
        pipeline.embed(folder[:count])

    contenders = [
        Contender("ours", ours, len(folder), floors.clip_image(setting.sizes, CLIP_BATCH, setting.fast), warm_up=40),
        Contender("published", one_at_a_time, plan.baseline(16, folder)),
        Contender("alternative", batched, len(folder), warm_up=8),
    ]
    yield plan.alternate(STAGES, "embedding", "images/s", contenders)


def clip_batches(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """CLIP alone, from pixels, beside open_clip in the same precision."""
    encoders = {name: setting.encoder(precision) for name, precision in setting.precisions.items()}
    theirs = setting.alternative(setting.model(setting.fast)).clip
    folder = setting.photos(plan.photos(16))
    for batch in plan.batches:
        pixels = _pixels(encoders[OURS], folder, batch)
        images = torch.randn(batch, *pixels.shape[:0:-1], device=setting.device, dtype=setting.fast)
        contenders = [
            _repeated(name, partial(encoder.encode_pixels, pixels), batch) for name, encoder in encoders.items()
        ]
        for contender in contenders:
            dtype = setting.dtype(setting.precisions[contender.name])
            contender.work = floors.clip_image(setting.sizes, batch, dtype)
        encode = torch.inference_mode()(partial(theirs.encode_image, images))
        contenders.append(_repeated("alternative", encode, batch))
        yield plan.alternate(STAGES, f"CLIP, batch {batch}", "images/s", contenders)


def mapping_batches(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """The mapping network alone."""
    model = setting.model(setting.fast)
    for batch in plan.batches:
        run = torch.inference_mode()(partial(model.prefix, torch.randn(batch, model.config.clip_dim)))
        yield plan.alternate(STAGES, f"mapping, batch {batch}", "images/s", [_repeated("ours", run, batch, least=512)])


def decoding_batches(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """Embeddings -> captions of 20 tokens: ours in each precision, Hugging Face's `generate`, and CTranslate2."""
    engines: dict[str, Apart] = {}
    with absent("CTranslate2") as notes:
        engines |= _ctranslate2(setting)
    for found in _decoding(setting, plan, "greedy", plan.batches, list(setting.precisions), engines):
        found.notes += notes
        yield found


def decoding_methods(setting: Setting, plan: Plan) -> Iterator[Measurement]:
    """The same by the other methods, without CTranslate2."""
    for method in ("nucleus", "beam"):
        yield from _decoding(setting, plan, method, plan.usual_batches, [OURS], {})


def _decoding(
    setting: Setting, plan: Plan, method: str, batches: Sequence[int], names: list[str], engines: dict[str, Apart]
) -> Iterator[Measurement]:
    """One method at these batch sizes; `names` are those of our own contenders."""
    tokens, models = 20, {name: setting.decoder(setting.precisions[name]) for name in names}
    original, search = setting.model(setting.fast), decoding(method, tokens)
    theirs = Alternative(torch.nn.Identity(), torch.nn.Identity(), original.clip_project, original.gpt)
    for batch in batches:
        embeddings = torch.randn(batch, original.config.clip_dim)
        contenders = []
        for name, model in models.items():
            contenders.append(_repeated(name, partial(model.generate, embeddings, search), batch))
            dtype = setting.dtype(setting.precisions[name])
            contenders[-1].work = floors.caption(model, tokens, batch, dtype, search.width)
        run = partial(theirs.generate, embeddings, method, tokens, None)
        contenders.append(_repeated("alternative", run, batch))
        prompts = torch.randint(setting.sizes.vocabulary - 1, (batch, setting.sizes.prefix_length)).tolist()
        for name, engine in engines.items():
            contenders.append(_repeated(name, partial(engine.generate, prompts, tokens), batch))
        yield plan.alternate(STAGES, f"decoding {method}, batch {batch}", "captions/s", contenders)


def _ctranslate2(setting: Setting) -> dict[str, Apart]:
    """In both of its precisions for a CPU, by the names of their contenders."""
    if setting.device.type != "cpu":
        return {}
    gpt = setting.model().gpt
    return {
        f"CTranslate2, {precision}": ctranslate2(gpt, setting.tokenizer, setting.folder / precision, precision)
        for precision in ("int8", "float32")
    }


def _repeated(name: str, run: Callable[[], object], batch: int, least: int = 32) -> Contender:
    """A contender that does whole batches, at least `least` items a round, but no more than eight batches for that."""
    least = min(least, 8 * batch)

    def repeat(count: int) -> None:
        for _ in range(0, count, batch):
            run()

    return Contender(name, repeat, batch * -(-least // batch))
