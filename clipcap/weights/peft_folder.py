"""LoRA adapters as a folder that peft loads, with the language model that they were trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clipcap.errors import UserError
from clipcap.files import NO_ROOM, make_folder, write_whole
from clipcap.model.clipcap import ClipCap
from clipcap.weights.lora import adapters_of

README = """\
LoRA adapters of a captioner, without its mapping network. `peft.AutoPeftModelForCausalLM` loads them, with the language
model in `gpt2/`, which `adapter_config.json` calls `{base}`. If this folder has moved, peft does not find it there:
write its new place, the whole path, as `base_model_name_or_path` into `adapter_config.json`.
"""
WRITTEN = ("README.md", "adapter_config.json", "adapter_model.safetensors", "gpt2")
FIRST_LINE = README.partition("\n")[0].encode()  # by which an earlier export is known


def export_of(folder: str, rank: int, ranks: Sequence[int]) -> Path:
    """Where the adapters of one of these ranks are exported to: the user's folder, or of several lora_RANK in it."""
    return Path(folder, f"lora_{rank}" if len(ranks) > 1 else "")


def claim_exports(exports: Iterable[Path]) -> None:
    """Make the folders of exports. Raises UserError if one would be written over files that are no earlier export."""
    for export in exports:
        make_folder(export)
        readme = export / "README.md"
        if readme.is_file() and readme.read_bytes().startswith(FIRST_LINE):
            continue
        for name in WRITTEN:
            if os.path.lexists(export / name):
                raise UserError(
                    f"--export-peft: {export / name} is of no earlier export, and would be written over: give another "
                    "folder"
                )


def export_peft(model: ClipCap, settings: Any, folder: str | Path) -> None:
    """Write the adapters as a folder that `peft.AutoPeftModelForCausalLM.from_pretrained(folder)` loads.

    The language model that they were trained on is in `folder/gpt2`. The config names it by its whole path, the only
    one by which peft finds it from everywhere; `folder/README.md` says what to do once the folder has moved.
    The mapping network is not in it, because peft knows only the language model. Raises UserError, and OSError for a
    full disk.
    """
    from safetensors.torch import save

    folder = Path(folder)
    try:
        base = str((folder / "gpt2").resolve())
        folder.mkdir(parents=True, exist_ok=True)
        # First: a killed run can then be resumed, since its folder is known.
        write_whole(folder / "README.md", README.format(base=base).encode(errors="surrogateescape"))
        (folder / "gpt2").mkdir(exist_ok=True)
        prefix = "base_model.model."
        tensors = {
            prefix + name.removeprefix("gpt.").replace(".default.", "."): tensor.contiguous()
            for name, tensor in adapters_of(model).items()
            if ".lora_" in name
        }
        write_whole(folder / "adapter_model.safetensors", save(tensors))
        _write_gpt2(model, folder / "gpt2")
        settings.base_model_name_or_path, settings.task_type, settings.inference_mode = base, "CAUSAL_LM", True
        with TemporaryDirectory() as unfinished:
            settings.save_pretrained(unfinished)
            write_whole(folder / "adapter_config.json", Path(unfinished, "adapter_config.json").read_bytes())
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise UserError(f"the peft folder {folder} cannot be written ({error.strerror}): choose another") from None


def _write_gpt2(model: ClipCap, folder: Path) -> None:
    """Write the GPT-2 below the adapters as transformers reads one. Raises OSError."""
    from safetensors.torch import save

    tensors = {
        name.replace(".base_layer.", "."): tensor.detach().cpu().contiguous()
        for name, tensor in model.gpt.state_dict().items()
        if ".lora_" not in name and not (model.config.tied_head and name == "lm_head.weight")
    }
    config = model.gpt.config.to_dict() | {"tie_word_embeddings": model.config.tied_head}
    config |= {"architectures": [type(model.gpt).__name__], "eos_token_id": model.config.stop_token}
    write_whole(folder / "config.json", json.dumps(config).encode())
    write_whole(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
