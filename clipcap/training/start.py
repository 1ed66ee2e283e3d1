"""What a run starts from: the processes that train together, and the model."""

from __future__ import annotations

import atexit
import gc
import hashlib
from contextlib import suppress
from typing import Any

import torch
from torch import distributed

from clipcap.cli.processes import Processes, launched, meet
from clipcap.data.store import EmbeddingStore
from clipcap.devices import pick_device
from clipcap.errors import Interrupted, UserError
from clipcap.model.clipcap import ClipCap
from clipcap.model.config import ClipCapConfig
from clipcap.model.language_model import find_end_of_text, load_language_model, load_tokenizer
from clipcap.model.networks import plain_settings
from clipcap.training.arguments import OF_TRANSFORMER, StartArguments
from clipcap.training.sharding import check_sharding
from clipcap.weights.checkpoint import load_checkpoint
from clipcap.weights.places import Base, base_among, check_base

LARGEST_MAPPING = 10**9  # parameters: 16 GB to train them


def meet_on(device: str) -> Processes:
    """Meet the processes that train together on this kind of device. They part when they end.

    Raises:
        UserError: they cannot meet, the device is not here, two would have the same GPU, or FSDP is asked for in a way
            that is not known.
    """
    check_sharding()
    kind, _, index = device.partition(":")
    if index and (world := launched()[1]) > 1:  # accelerate would give each process the GPU of its number
        raise UserError(
            f"--device {device} is one GPU, and the {world} processes have one each: give --device {kind}, and choose "
            "the GPUs with CUDA_VISIBLE_DEVICES"
        )

    def begin() -> None:
        from accelerate import PartialState  # here, since it takes seconds to import

        PartialState(cpu=pick_device(device).type == "cpu")
        atexit.register(_part)

    processes = meet(begin)
    if processes.world > 1:
        _check_own_gpu(processes, pick_device(device))
    return processes


def _check_own_gpu(processes: Processes, device: torch.device) -> None:
    """Raise a UserError where two processes have the same GPU, which NCCL refuses as soon as they train."""
    own = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
    gpus = [gpu for gpu in processes.gather(own) if gpu]
    if len(gpus) > len(set(gpus)):
        raise UserError(
            f"{len(gpus)} processes would train on {len(set(gpus))} GPU(s), and each needs one of its own: start as "
            "many processes as there are GPUs, or give --device cpu"
        )


def _part() -> None:
    with suppress(Interrupted):  # torchrun asks the others to terminate when one process has failed
        if distributed.is_initialized():
            distributed.destroy_process_group()


def start_model(args: StartArguments, store: EmbeddingStore, strategy_args: Any) -> tuple[ClipCap, Base | None]:
    """The weights of `--init`, and which they are; or a fresh mapping network for the data's CLIP, which has no base.

    Of `strategy_args` it wants to know only whether `--base` is meant for their `--literal-weights`.

    Raises:
        UserError: options that contradict each other, or weights that cannot be loaded or change meanwhile.
    """
    gc.collect()  # a model that this process trained before is in cycles, and would stay in memory beside this one
    check_base([args.init, getattr(strategy_args, "literal_weights", None)], args.base)
    fresh = ("language_model", "mapping", "prefix_length", *OF_TRANSFORMER)
    if args.init:
        clashing = [name for name in fresh if getattr(args, name) is not None] + ["normalize"] * args.normalize
        if clashing:
            raise UserError(
                f"--{clashing[0].replace('_', '-')} is for a fresh mapping network, and --init {args.init} brings its "
                "own: leave one of the two out"
            )
        base = Base.of(args.init)
        model = load_checkpoint(args.init, base=base_among(args.init, args.base))
        if Base.of(args.init) != base:
            raise UserError(f"--init {args.init} was written anew while it was loaded: run the same command again")
        model.literal_captioner = model.config.prompt = None
        model.config.controls = {}
        return model, base
    args.check()
    language_model = args.language_model or "gpt2"
    gpt = load_language_model(language_model)
    chosen: dict[str, Any] = {name: getattr(args, name) for name in fresh[1:] if getattr(args, name) is not None}
    chosen["gpt2" if gpt.config.model_type == "gpt2" else "network"] = plain_settings(gpt.config)
    config = ClipCapConfig(
        clip_model=store.clip["model"],
        clip_pretrained=store.clip["pretrained"],
        clip_dim=store.clip["dim"],
        normalize=args.normalize,
        language_model=language_model,
        tied_head=gpt.config.tie_word_embeddings,
        end_of_text=find_end_of_text(load_tokenizer(language_model), gpt.config),
        **chosen,
    )
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in ClipCap(config).clip_project.parameters())
    if size > LARGEST_MAPPING:
        raise UserError(
            f"this mapping network would have {size:,} parameters: choose a smaller --prefix-length or --clip-length"
        )
    model = ClipCap(config)
    model.gpt.load_state_dict(gpt.state_dict())
    return model, None


def content_of(model: ClipCap) -> str:
    """SHA-256 over language model and tokenizer, by which they are recognised wherever they came from."""
    digest = hashlib.sha256((model.config.tokenizer or "").encode())
    for name, tensor in model.gpt.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
