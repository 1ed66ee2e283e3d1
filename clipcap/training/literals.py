"""The literal captions in the prompts of a dataset (prompted strategy): computed once, and stored with the dataset."""

from __future__ import annotations

from clipcap.data.store import check_clip
from clipcap.devices import pick_device
from clipcap.errors import UserError, shown
from clipcap.model.clipcap import ClipCap
from clipcap.model.prompts import LITERAL, caption_embeddings
from clipcap.training.experiment import Experiment
from clipcap.weights.checkpoint import load_checkpoint
from clipcap.weights.format import sha256
from clipcap.weights.places import base_among
from clipcap.weights.published import resolve_weights

PART = 8192  # rows whose captions are computed before they are stored


def load_literal_captioner(experiment: Experiment, weights: str) -> tuple[ClipCap, str]:
    """The literal captioner, frozen, and the identity under which its captions are stored.

    Prompted weights hold one: they caption behind a prompt only, and so cannot fill it themselves.

    Args:
        experiment: whose prompts it fills.
        weights: a file, or a published name.

    Raises:
        UserError: it cannot be loaded, takes another CLIP, or needs a prompt of its own.
    """
    model = load_checkpoint(weights, base=base_among(weights, experiment.start_args.base))
    identity = sha256(resolve_weights(weights))
    if model.literal_captioner is not None:
        model, identity = model.literal_captioner, f"{identity}.literal_captioner"
    if model.config.prompt is not None:
        raise UserError(
            f"the literal captioner in {weights} has learned to caption behind the prompt "
            f"{shown(model.config.prompt)}, and would be without it: give one that needs none with --literal-weights"
        )
    check_clip(experiment.store, model.config)
    model.use_fast(not experiment.loop_args.no_fast)
    return model.requires_grad_(False), identity


def stored_literal_captions(experiment: Experiment, split: str, rows: int, model: ClipCap, identity: str) -> list[str]:
    """The literal captions of the first rows of a split: those stored in the dataset, the others computed and stored.

    Each image is captioned once, on the device of the run; several processes share the images out. Afterwards the
    literal captioner is on the CPU, so that training has the memory of the device.

    Args:
        experiment: with the dataset.
        split: the name of a split.
        rows: how many of its rows.
        model: the literal captioner.
        identity: under which its captions are stored.

    Raises:
        UserError: they cannot be stored in the dataset; that is tried before any is computed.
    """
    store, processes = experiment.store, experiment.processes
    captions = store.literal_captions(split, identity)[:rows]
    captions = captions[: min(processes.gather(len(captions)))]
    if len(captions) == rows:
        return captions

    def save() -> None:
        if processes.main:
            store.save_literal_captions(split, identity, captions)

    processes.attempt(save)
    embeddings = store.embeddings(split)
    images = embeddings.numbers[:rows].tolist()
    said = dict(zip(images[: len(captions)], captions, strict=True))
    model.to(pick_device(experiment.loop_args.device))
    while len(captions) < rows:
        end = min(len(captions) + PART, rows)
        new = {images[row]: row for row in range(len(captions), end) if images[row] not in said}
        own = embeddings.take([*new.values()][processes.rank :: processes.world])
        found = caption_embeddings(model, own, LITERAL, progress=f"literal captions, {split}, to row {end} of {rows}")
        for rank, share in enumerate(processes.gather(found)):
            said.update(zip([*new][rank :: processes.world], share, strict=True))
        captions = [said[image] for image in images[:end]]
        processes.attempt(save)
    model.to("cpu")
    return captions
