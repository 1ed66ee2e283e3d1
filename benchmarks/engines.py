"""Inference engines outside PyTorch, given the same GPT-2: CTranslate2, and llama.cpp by its Python binding.

Neither is needed: a comparison leaves out what is not installed, and says so. `make setup` installs CTranslate2;
llama.cpp is compiled when `pip install -e .[llama]` installs it.

Each works in a process of its own. In one process with PyTorch, CTranslate2 slows it down: on 2 cores, after one batch
of CTranslate2, ours took 1.2 to 1.4 times as long to decode 32 captions, and its threads were idle for a third of that.
GNU OpenMP, which both use, waits less before it sleeps where there are more threads than cores (see GOMP_SPINCOUNT).

Shapes: B rows, P prefix length, T tokens, D GPT-2 width, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from clipcap.model.config import END_OF_TEXT


class Apart:
    """An engine in a process of its own: `generate` is called there."""

    def __init__(self, engine: Callable[..., Any], *args: Any) -> None:
        self.process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.process.submit(_open, engine, *args).result()

    def generate(self, inputs: Any, tokens: int) -> list[list[int]]:
        """What the engine returns."""
        return self.process.submit(_generate, inputs, tokens).result()


_opened: list[Any] = []  # the engine, in its own process


def _open(engine: Callable[..., Any], *args: Any) -> None:
    _opened.append(engine(*args))


def _generate(inputs: Any, tokens: int) -> list[list[int]]:
    return _opened[0].generate(inputs, tokens)


def ctranslate2(gpt: GPT2LMHeadModel, tokenizer: Tokenizer, folder: Path, precision: str) -> Apart:
    """GPT-2 in CTranslate2.

    Args:
        gpt: in float32.
        tokenizer: one token for every id.
        folder: does not exist yet.
        precision: "float32" or "int8".

    Raises:
        ImportError: it is not installed.
    """
    import ctranslate2  # type: ignore[import-untyped]  # noqa: F401
    from ctranslate2.converters import TransformersConverter  # type: ignore[import-untyped]

    gpt.save_pretrained(folder / "gpt2")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "gpt2")
    TransformersConverter(str(folder / "gpt2")).convert(str(folder / "converted"), quantization=precision)
    return Apart(CTranslate2, folder / "converted", tokenizer, precision, torch.get_num_threads())


class CTranslate2:
    """GPT-2 in CTranslate2. It takes tokens and no embeddings, so it cannot caption: a yardstick of decoding alone."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, precision: str, threads: int) -> None:
        from ctranslate2 import Generator  # type: ignore[import-untyped]

        self.tokenizer = tokenizer
        self.generator = Generator(str(folder), compute_type=precision, intra_threads=threads)

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Greedy: ids (B, P) -> the `tokens` ids after them."""
        texts = [[self.tokenizer.id_to_token(token) for token in prompt] for prompt in prompts]
        found = self.generator.generate_batch(
            texts,
            max_batch_size=len(texts),
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [row.sequences_ids[0] for row in found]


def llama(gpt: GPT2LMHeadModel, file: Path, rows: int, length: int) -> Apart:
    """GPT-2 in llama.cpp.

    Args:
        gpt: in float32.
        file: is written; does not exist yet.
        rows: B at most.
        length: P + T at most.

    Raises:
        ImportError: it is not installed, or takes no model or no batch of this size.
    """
    import llama_cpp  # type: ignore[import-untyped]  # noqa: F401

    write_gguf(gpt, file)
    return Apart(Llama, file, gpt.config.n_embd, rows, length, torch.get_num_threads())


class Llama:
    """GPT-2 in llama.cpp, with weights in Q8_0: blocks of 32 numbers in int8 share a scale."""

    def __init__(self, file: Path, width: int, rows: int, length: int, threads: int) -> None:
        import llama_cpp  # type: ignore[import-untyped]

        self.api, self.width = llama_cpp, width
        _silence()
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_seq_max = rows * length, rows * length, rows
        options.kv_unified = False
        options.n_threads = options.n_threads_batch = threads
        self.context = self.model and llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise ImportError(f"it cannot load GPT-2 for {rows} texts of {length} tokens")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def generate(self, prefix: np.ndarray, tokens: int) -> list[list[int]]:
        """Greedy: prefix (B, P, D) in float32 -> the `tokens` ids after it."""
        rows, length, _ = prefix.shape
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        chosen = [self._read(prefix.reshape(rows * length, -1), rows, range(length))]
        while len(chosen) < tokens:
            place = length + len(chosen) - 1
            chosen.append(self._read(chosen[-1], rows, range(place, place + 1)))
        return np.stack(chosen, 1).tolist()

    def _read(self, inputs: np.ndarray, rows: int, places: range) -> np.ndarray:
        """Read embeddings (B * P, D) or ids (B,) at these positions of each row; returns the best next ids (B,)."""
        embedded, count = inputs.ndim == 2, len(inputs)
        batch = self.api.llama_batch_init(count, self.width if embedded else 0, 1)
        try:
            target = batch.embd if embedded else batch.token
            np.ctypeslib.as_array(target, (inputs.size,))[:] = inputs.reshape(-1)
            for number in range(count):
                row, place = divmod(number, len(places))
                batch.pos[number], batch.n_seq_id[number], batch.seq_id[number][0] = places[place], 1, row
                batch.logits[number] = place == len(places) - 1
            batch.n_tokens = count
            if self.api.llama_decode(self.context, batch):
                raise RuntimeError("llama.cpp could not read the batch")
        finally:
            self.api.llama_batch_free(batch)
        logits = self.api.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, (rows, self.vocabulary)).argmax(1).astype(np.int32)


def write_gguf(gpt: GPT2LMHeadModel, file: Path) -> None:
    """GPT-2 in llama.cpp's format: matrices in Q8_0, the rest in float32, and a vocabulary of numbered words.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    from gguf import GGMLQuantizationType, GGUFWriter  # type: ignore[import-untyped]
    from gguf.quants import quantize  # type: ignore[import-untyped]

    config, writer = gpt.config, GGUFWriter(str(file), "gpt2")
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"word{number}" for number in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)  # ordinary ones
    writer.add_token_merges(["w o"])
    writer.add_bos_token_id(config.vocab_size - 1)
    writer.add_eos_token_id(config.vocab_size - 1)
    quantised = GGMLQuantizationType.Q8_0
    for name, weight in _named(gpt):
        values = weight.detach().float().contiguous().numpy()
        if name.endswith(".bias") or "norm" in name or name == "position_embd.weight":
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantize(values, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _named(gpt: GPT2LMHeadModel) -> list[tuple[str, torch.Tensor]]:
    """Every weight by llama.cpp's name, matrices as (out, in)."""
    body = gpt.transformer
    named = [("token_embd.weight", body.wte.weight), ("position_embd.weight", body.wpe.weight)]
    named += [("output.weight", gpt.lm_head.weight)]
    norms, matrices = {"output_norm": body.ln_f}, {}
    for number, block in enumerate(body.h):
        at = f"blk.{number}."
        norms |= {f"{at}attn_norm": block.ln_1, f"{at}ffn_norm": block.ln_2}
        matrices |= {f"{at}attn_qkv": block.attn.c_attn, f"{at}attn_output": block.attn.c_proj}
        matrices |= {f"{at}ffn_up": block.mlp.c_fc, f"{at}ffn_down": block.mlp.c_proj}
    for name, layer in (norms | matrices).items():
        weight = layer.weight.t() if name in matrices else layer.weight  # GPT-2 keeps its matrices as (in, out)
        named += [(f"{name}.weight", weight), (f"{name}.bias", layer.bias)]
    return named


@cache
def _silence() -> object:
    """Let llama.cpp log nothing. The callback is kept here, since it may be called as long as the process lives."""
    import llama_cpp  # type: ignore[import-untyped]

    callback = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback
