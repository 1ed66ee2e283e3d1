"""What a run needs before its first step: device and precision, groups of parameters, and how it takes an interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from clipcap.cli.processes import Processes
from clipcap.cli.status import requests_to_end
from clipcap.devices import pick_device, pick_dtype, precision_of
from clipcap.errors import UserError
from clipcap.files import only_writer
from clipcap.model.clipcap import ClipCap
from clipcap.training.arguments import LoopArguments
from clipcap.training.sharding import asks_for_fsdp

WIDE = 512  # from this width on, bf16 saves more on a CPU than its conversions cost


def make_accelerator(args: LoopArguments, width: int) -> Accelerator:
    """An Accelerator with the device, precision and tracker of a run; `width` is that of the language model.

    Several processes have met already, see `clipcap.training.start`.

    Raises:
        UserError: the device does not exist here or is not for FSDP or fp16, or the tracker's package is not installed.
    """
    if asks_for_fsdp() and args.compile:
        raise UserError("--compile is not for weights that FSDP shards: leave --compile or --use_fsdp out")
    device, precision = pick_device(args.device), args.precision
    if precision == "auto":
        wide = device.type != "cpu" or width >= WIDE
        precision = precision_of(pick_dtype("auto", device)) if wide else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"--precision fp16 trains on CUDA devices only, and this run is on {device}: give bf16 or fp32")
    if device.type == "cuda" and device.index is not None:  # accelerate takes the current device
        torch.cuda.set_device(device)
    tracker = None if args.report_to == "none" else args.report_to
    if tracker and find_spec(tracker) is None:
        raise UserError(f"--report-to {tracker} needs the package: pip install {tracker}")
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=tracker,
        project_dir=args.output_dir,
    )
    if asks_for_fsdp() and accelerator.distributed_type != DistributedType.FSDP:
        raise UserError(f"accelerate shards nothing on the device {device.type}: leave --use_fsdp out")

    # Where several processes train, the model is a part of a module of torch's. A state has the same names everywhere.
    def rename(_: list[nn.Module], weights: list[dict[str, Tensor]], __: str) -> None:
        for state in weights:
            consume_prefix_in_state_dict_if_present(state, "module.")

    def unwrap(models: list[nn.Module], _: str) -> None:
        models[:] = map(accelerator.unwrap_model, models)

    accelerator.register_save_state_pre_hook(rename)
    accelerator.register_load_state_pre_hook(unwrap)
    return accelerator


def parameter_groups(model: ClipCap, args: LoopArguments) -> list[dict[str, Any]]:
    """The parameters that train, in AdamW's groups: matrices with weight decay, vectors without.

    A mapping network with a learning rate of its own has groups of its own.

    Raises:
        UserError: it has such a rate, and does not train.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    mapping = {name for name in trained if name.startswith("clip_project.")}
    if args.mapping_learning_rate is None:
        return _decay_groups(trained.values(), args)
    if not mapping:
        raise UserError("--mapping-learning-rate has an effect only where the mapping network trains: leave it out")
    mapping_args = replace(args, learning_rate=args.mapping_learning_rate)
    others, own = ([trained[name] for name in trained if (name in mapping) == is_own] for is_own in (False, True))
    return [*_decay_groups(others, args), *_decay_groups(own, mapping_args)]


def _decay_groups(parameters: Iterable[nn.Parameter], args: LoopArguments) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    decay = ((matrices, args.weight_decay), (vectors, 0.0))
    return [{"params": group, "lr": args.learning_rate, "weight_decay": value} for group, value in decay]


def rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the first group that has parameters: a group without any trains nothing."""
    return next(group["lr"] for group in optimizer.param_groups if group["params"])


@contextmanager
def only_run(folders: Iterable[Path], processes: Processes) -> Iterator[None]:
    """Hold output folders for this run alone. Raises UserError where another one holds them."""
    with ExitStack() as held:
        if processes.main:
            for folder in {folder.resolve(): folder for folder in folders}.values():
                held.enter_context(only_writer(folder))
        processes.wait()
        yield


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """Inside this context, signals that ask the run to end only add their number to the list that it gives.

    The loop looks at the list between steps: stopped within a step, weights and progress would not agree.
    """
    received: list[int] = []
    signals = requests_to_end() if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in signals}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
