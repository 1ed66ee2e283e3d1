"""Weights from strangers: nothing in a file runs, leads anywhere, or makes the machine work; each gets one sentence."""

import codecs
import copy
import json
import os
import re
import time
from pathlib import Path

import pytest
import torch
from tiny import (
    TINY_CLIP,
    Zeros,
    byte_tokenizer,
    compress,
    save_tiny_clip,
    save_tiny_weights,
    soon,
    tiny_captioner_model,
    tiny_config,
    tiny_model,
)

from clipcap.captioning.captioner import Captioner
from clipcap.errors import UserError
from clipcap.model.config import ClipCapConfig
from clipcap.model.language_model import load_tokenizer, tokenizer_from_json, tokenizer_of
from clipcap.model.prompts import PROMPTS, check_template
from clipcap.model.settings import GPT2
from clipcap.weights import fetch, places
from clipcap.weights.checkpoint import load_checkpoint, model_payload, save_checkpoint
from clipcap.weights.folder import write_folder
from clipcap.weights.format import read, sha256
from clipcap.weights.lora import inject, save_adapters
from clipcap.weights.places import Base
from clipcap.weights.published import resolve_weights

HUGE = 10**9


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> dict[str, dict]:
    """What good files hold, by mapping network; LoRA weights, and the bare tensors of published ones."""
    folder = tmp_path_factory.mktemp("good")
    found = {}
    for mapping in ("mlp", "transformer"):
        save_checkpoint(tiny_model(mapping, prompt=" {literal}"), folder / f"{mapping}.pt")
        found[mapping] = torch.load(folder / f"{mapping}.pt", weights_only=True)
    found["published"] = found["mlp"]["tensors"]
    model = load_checkpoint(folder / "mlp.pt")
    settings = inject(model, 2, 16.0, 0.0, ["c_attn"])
    save_adapters(model, folder / "lora.pt", Base.of(str(folder / "mlp.pt")), settings)
    found["lora"] = torch.load(folder / "lora.pt", weights_only=True)
    found["base"] = {"path": folder / "mlp.pt"}
    return found


def refused(path: Path, content: object, **overrides) -> str:
    """The sentence with which `load_checkpoint` refuses a file of this content, at once."""
    torch.save(content, path)
    begun = time.process_time()
    with pytest.raises(UserError) as caught:
        load_checkpoint(path, **overrides)
    assert time.process_time() - begun < 5  # it takes milliseconds; without the checks hours
    told = str(caught.value)
    assert told.isprintable() and len(told) < 700 and path.name in told
    return told


def with_config(content: dict, **changes) -> dict:
    return content | {"config": content["config"] | changes}


def with_gpt2(content: dict, **changes) -> dict:
    return with_config(content, gpt2=content["config"]["gpt2"] | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prefix_length": "10"}, "prefix_length must be of type int, not '10'"),
        ({"prefix_length": True}, "prefix_length must be of type int, not True"),
        ({"prefix_length": 4.0}, "of type int, not 4.0"),
        ({"prefix_length": -4}, "prefix_length must be at least 1, not -4"),
        ({"prefix_length": HUGE}, "its config says prefix_length 1000000000, and its tensors say 4"),
        ({"prefix_length": 10**500}, "prefix_length must be at most"),
        ({"prefix_length": torch.tensor(4)}, "of type int, not a Tensor"),
        ({"mapping_layers": HUGE}, "its config says mapping_layers 1000000000, and its tensors say 2"),
        ({"clip_length": HUGE}, "clip_length 1000000000"),
        ({"clip_dim": HUGE}, "clip_dim 1000000000"),
        ({"mapping_heads": 0}, "mapping_heads must be at least 1"),
        ({"mapping_heads": HUGE}, "mapping heads"),
        ({"mapping": "mlp"}, "its config says mapping mlp, and its tensors say transformer"),
        ({"mapping": "other"}, "unknown mapping network 'other'"),
        ({"mapping": ["mlp"]}, "mapping must be of type str, not a list"),
        ({"mapping": "\x1b[2J\n"}, "mapping holds characters that cannot be printed"),
        ({"normalize": 1}, "normalize must be of type bool, not 1"),
        ({"tied_head": "yes"}, "tied_head must be of type bool"),
        ({"stop_token": "."}, "stop_token must be of type int"),
        ({"stop_token": -1}, "stop_token must be at least 0"),
        ({"stop_token": 211}, "stop_token 211 is no token of a vocabulary of 211"),
        ({"prompt": 5}, "prompt must be of type str, not 5"),
        ({"prompt": "{literal.__class__}"}, "the only field is {literal}"),
        ({"prompt": "{literal:>9999999999}"}, "a format"),
        ({"prompt": "word " * 5000}, "25,000 characters"),
        ({"controls": None}, "controls must be a dictionary"),
        ({"controls": {"colour": [0, 1]}}, "no other names than length, emoji, hashtags"),
        ({"controls": {"length": [3]}}, "the control length must have two bounds"),
        ({"controls": {"length": [5, 2]}}, "the smaller first"),
        ({"controls": {"length": [0, HUGE]}}, "the control length must have"),
        ({"controls": {"emoji": [False, 2]}}, "whole numbers"),
        ({"controls": {"emoji": [-1, 2]}}, "from 0 on"),
        ({"controls": {"hashtags": [0, 11]}}, "the control hashtags must have"),
        ({"controls": {"hashtags": "03"}}, "the control hashtags must have"),
        ({"clip_model": 5}, "clip_model must be of type str, not 5"),
        ({"language_model": None}, "language_model must be of type str"),
        ({"language_model": "/tmp"}, "names the language model '/tmp'.*language_model="),
        ({"language_model": "../elsewhere/model"}, "language_model="),
        ({"tokenizer": {"model": 1}}, "tokenizer must be of type str"),
        ({"gpt2": [1]}, "gpt2 must be of type dict, not a list"),
        ({"unknown": 1}, "its fields are not those of this version"),
    ],
)
def test_a_value_that_no_config_has_is_refused(tmp_path, contents, changes, told):
    assert re.search(told, refused(tmp_path / "weights.pt", with_config(contents["transformer"], **changes)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n_layer": HUGE}, "its config says n_layer 1000000000, and its tensors say 2"),
        ({"n_positions": HUGE}, "n_positions 1000000000"),
        ({"n_embd": HUGE}, "n_embd 1000000000"),
        ({"vocab_size": HUGE}, "vocab_size 1000000000"),
        ({"n_head": 5}, "width 32 cannot be divided among 5 heads"),
        ({"n_head": 0}, "n_head must be at least 1"),
        ({"n_layer": True}, "n_layer must be of type int"),
        ({"n_inner": HUGE}, "has shape"),
        ({"activation_function": "__class__"}, "activation_function must be one of gelu_new"),
        ({"activation_function": ["gelu"]}, "activation_function must be one of"),
        ({"resid_pdrop": "0.1"}, "resid_pdrop must be a number"),
        ({"attn_pdrop": float("nan")}, "attn_pdrop must be a number"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a number above 0"),
        ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon must be a number"),
        ({"scale_attn_weights": 1}, "scale_attn_weights must be of type bool"),
        *(
            ({name: "x"}, f"'{name}' is no setting of GPT-2 here")
            for name in (
                *("attn_implementation", "_attn_implementation", "auto_map", "trust_remote_code", "_name_or_path"),
                *("add_cross_attention", "dtype", "quantization_config", "architectures", "__class__", "bos_token_id"),
            )
        ),
        ({"": 5}, "'' is no setting"),
    ],
)
def test_a_setting_that_no_gpt2_has_is_refused(tmp_path, contents, changes, told):
    for mapping in ("mlp", "transformer"):
        assert told in refused(tmp_path / "weights.pt", with_gpt2(contents[mapping], **changes))


def test_a_prefix_that_leaves_no_room_is_refused(tmp_path, contents):
    name = "gpt.transformer.wpe.weight"
    content = with_gpt2(contents["mlp"], n_positions=4)
    content["tensors"] = content["tensors"] | {name: content["tensors"][name][:4].clone()}
    assert "leaves no room for text" in refused(tmp_path / "weights.pt", content)


def test_every_setting_that_a_file_of_ours_holds_is_allowed(tmp_path):
    from transformers import GPT2Config

    from clipcap.model.networks import plain_settings

    gpt2 = plain_settings(GPT2Config(vocab_size=211, n_positions=64, n_embd=32, n_layer=1, n_head=4))
    assert gpt2.keys() == GPT2.keys()
    save_checkpoint(tiny_model(gpt2=gpt2), tmp_path / "weights.pt")
    assert load_checkpoint(tmp_path / "weights.pt").config.gpt2 == gpt2


@pytest.mark.parametrize("kind", ["mlp", "published"])
@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (lambda t: t.to("meta"), "dense tensors"),
        (lambda t: t.to_sparse(), "dense tensors"),
        (lambda t: torch.nested.nested_tensor([t[0], t[1]]), "dense tensors"),
        (lambda t: torch._neg_view(t.clone()), "dense tensors"),
        (lambda t: t.int(), "is int32"),
        (lambda t: t.bool(), "is bool"),
        (lambda t: t.to(torch.complex64), "is complex64"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is qint8"),
        (lambda t: t.to(torch.float8_e4m3fn), "is float8_e4m3fn"),
        (lambda t: t[:1, :1].expand(HUGE, HUGE), "more than the file holds"),
        (lambda t: t[:1, :1].half().expand(t.shape[0] * 10**6, t.shape[1]), "more than the file holds"),
        (lambda t: t[:, :0], "has shape"),
        (lambda t: t[0], "has shape"),
        (lambda t: torch.full_like(t, torch.nan), "holds NaN or infinite numbers"),
        (lambda t: "numbers", "str"),
        (lambda t: None, "NoneType"),
        (lambda t: [t], "list"),
    ],
    ids=[
        *("meta", "sparse", "nested", "negated", "int", "bool", "complex", "quantized", "eight bits", "endless"),
        *("endless half", "empty", "one dimension", "nan", "text", "none", "a list"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's own about old kinds of tensors
def test_a_tensor_that_is_no_weight_is_refused(tmp_path, contents, kind, tensor, told):
    name = "gpt.transformer.wpe.weight"
    tensors = contents["mlp"]["tensors"]
    changed = tensors | {name: tensor(tensors[name])}
    content = changed if kind == "published" else contents["mlp"] | {"tensors": changed}
    sentence = refused(tmp_path / "weights.pt", content, **({"heads": 4} if kind == "published" else {}))
    if kind == "published" and told in ("str", "NoneType", "list"):
        assert "neither a file of this project" in sentence
    else:
        assert name in sentence or "more than" in told
        assert told in sentence


@pytest.mark.parametrize("kind", ["mlp", "transformer", "published", "lora", "literal"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_refused_by_the_name_of_their_tensor(tmp_path, contents, kind, number, dtype):
    content = contents["mlp" if kind == "literal" else kind]
    tensors = dict(content if kind == "published" else content["tensors"])
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].to(dtype, copy=True)
    tensors[name].view(-1)[-1] = number
    overrides = {"heads": 4} if kind == "published" else {"base": str(contents["base"]["path"])}
    if kind == "literal":
        content = content | {"literal_captioner": {"config": content["config"], "tensors": tensors}}
    else:
        content = tensors if kind == "published" else content | {"tensors": tensors}
    assert f"{name} holds NaN or infinite numbers" in refused(tmp_path / "weights.pt", content, **overrides)


def test_half_precision_loads(tmp_path, contents):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        tensors = {name: tensor.to(dtype) for name, tensor in contents["mlp"]["tensors"].items()}
        del tensors["gpt.lm_head.weight"]
        tensors["gpt.lm_head.weight"] = tensors["gpt.transformer.wte.weight"]
        torch.save(contents["mlp"] | {"tensors": tensors}, tmp_path / "weights.pt")
        assert {p.dtype for p in load_checkpoint(tmp_path / "weights.pt").parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "name",
    [
        "gpt.transformer.h.999999999.ln_1.weight",
        f"gpt.transformer.h.{'9' * 100}.ln_1.weight",
        "clip_project.transformer.layers.999999999.norm1.weight",
        "gpt.transformer.h.\u0663.ln_1.weight",
        "\x1b[2J",
        "a\nb",
        "a" * 10_000,
        "",
    ],
)
@pytest.mark.parametrize("kind", ["mlp", "transformer", "published"])
def test_a_name_of_a_tensor_means_no_work(tmp_path, contents, kind, name):
    """Guards against a model of as many blocks as the largest number in a name."""
    content = contents[kind]
    extra = {name: torch.zeros(32)}
    content = content | extra if kind == "published" else content | {"tensors": content["tensors"] | extra}
    refused(tmp_path / "weights.pt", content, **({"heads": 4} if kind == "published" else {}))


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"config": [1]},
        {"tensors": None},
        {"tensors": [1]},
        {"tensors": {}},
        {"tensors": {5: torch.zeros(1)}},
        {"record": 5},
        {"literal_captioner": 5},
        {"literal_captioner": {"config": {}}},
        {"literal_captioner": {"tensors": {}}},
        {"version": torch.zeros(2)},
        {"version": True},
        {"version": "1"},
        {"base": 5},
        {"base": {}},
        {"base": {"weights": 5, "sha256": "0"}},
        {"base": {"weights": "coco", "sha256": torch.zeros(2)}},
    ],
)
def test_parts_of_another_kind_are_refused(tmp_path, contents, changes):
    refused(tmp_path / "weights.pt", contents["mlp"] | changes)
    for lost in ("config", "tensors", "version"):
        refused(tmp_path / "weights.pt", {name: part for name, part in contents["mlp"].items() if name != lost})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora": None}, "which layers"),
        ({"lora": {"targets": "c_attn", "alpha": 16}}, "which layers"),
        ({"lora": {"targets": [["c_attn"], 5], "alpha": 16}}, "unexpected"),
        *(
            ({"lora": {"targets": ["c_attn"], "alpha": alpha}}, "alpha must be a number above 0")
            for alpha in (None, "16", True, 0, -1, float("nan"), float("inf"))
        ),
        ({"lora": {"targets": ["c_attn"], "alpha": 1e308, "rank": 2}}, "holds NaN or infinite"),
        ({"lora": {"targets": ["c_attn"], "alpha": 16, "rank": 3}}, "says rank 3"),
        *(
            ({"base": {"weights": weights, "sha256": "0" * 64}}, "was not found beside it")
            for weights in ("a\0b", "a" * 5000, "\ud800")
        ),
    ],
)
def test_lora_files_of_another_kind_are_refused(tmp_path, contents, changes, told):
    tensors = {name: tensor + 1 for name, tensor in contents["lora"]["tensors"].items()}
    content = contents["lora"] | {"tensors": tensors} | changes
    overrides = {} if "base" in changes else {"base": str(contents["base"]["path"])}
    assert told in refused(tmp_path / "lora.pt", content, **overrides)


def test_a_published_tensor_under_two_names_is_refused(tmp_path, contents):
    name = "gpt.transformer.ln_f.bias"
    twice = contents["published"] | {f"base_model.model.{name}": torch.ones(32)}
    assert "holds a tensor twice" in refused(tmp_path / "weights.pt", twice, heads=4)


def test_the_literal_captioner_leads_nowhere_either(tmp_path, contents):
    config = contents["mlp"]["config"] | {"tokenizer": None, "language_model": str(tmp_path.parent)}
    content = contents["mlp"] | {"literal_captioner": {"config": config, "tensors": contents["mlp"]["tensors"]}}
    assert "so it is not opened" in refused(tmp_path / "weights.pt", content)


CIRCLE: list = []
CIRCLE.append(CIRCLE)
LAUGHS: list = ["ha"]
for _ in range(40):
    LAUGHS = [LAUGHS, LAUGHS]


@pytest.mark.parametrize(
    "record",
    [
        {"losses": {"history": [{(1, 2): 3}]}},
        {"strategy": "\ud800x"},
        {"\ud800": 1},
        {"losses": torch.zeros(2)},
        {"seconds": 10**400},
        {"losses": CIRCLE},
        {"losses": LAUGHS},
    ],
    ids=["a pair as key", "half a letter", "half a letter key", "tensor", "huge", "circle", "laughs"],
)
def test_a_record_of_other_than_plain_values_is_refused(tmp_path, contents, record):
    assert "record of how it was trained" in refused(tmp_path / "weights.pt", contents["mlp"] | {"record": record})


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a|a|aa|.)*$Z"}, "content": ""}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|a)*"}, "behavior": "Isolated", "invert": False}},
        {"decoder": {"type": "Strip", "content": "a", "start": 10**6, "stop": 10**6}},
        {"decoder": {"type": "Sequence", "decoders": []}},
        {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}},
        {"model": {"type": "WordLevel", "unk_token": "[NOPE]"}},
        {"model": {"unk_token": "[NOPE]"}},
        {"model": {"dropout": 0.9}},
    ],
)
def test_a_tokenizer_with_parts_that_language_models_do_not_have_is_refused(changes):
    """Guards against panics in Rust, which are no exceptions, and against patterns that take hours."""
    parts = json.loads(byte_tokenizer().to_str())
    parts |= changes | {"model": parts["model"] | changes.get("model", {})}
    with pytest.raises(UserError, match="not known here|cannot be read|may have|special tokens") as caught:
        tokenizer_from_json(json.dumps(parts))
    assert "\n" not in str(caught.value)


def test_the_tokenizer_of_the_demo_world_passes():
    text = load_tokenizer("demo").to_str()
    assert tokenizer_from_json(text).to_str() == text


def test_the_base_of_lora_weights_is_looked_for_in_their_own_folder_only(tmp_path, contents, monkeypatch):
    """A path in a stranger's file is not opened, relative or absolute, and not through a link either."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "base.pt").write_bytes(contents["base"]["path"].read_bytes())
    sha = contents["lora"]["base"]["sha256"]
    monkeypatch.chdir(outside)
    (inside / "link").symlink_to(outside)
    for place in ("base.pt", str(outside / "base.pt"), "../outside/base.pt", str(inside / "link" / "base.pt")):
        content = contents["lora"] | {"base": {"weights": place, "sha256": sha}}
        assert "give it with --base" in refused(inside / "lora.pt", content)
    load_checkpoint(inside / "lora.pt", base=str(outside / "base.pt"))
    (inside / "base.pt").write_bytes((outside / "base.pt").read_bytes())
    load_checkpoint(inside / "lora.pt")
    monkeypatch.chdir(inside)  # where hf:jane/voice is a path into the file's own folder
    content = contents["lora"] | {"base": {"weights": "hf:jane/voice", "sha256": sha}}
    resolve: list[Path | str] = []
    with monkeypatch.context() as patch:
        patch.setattr(places, "resolve_weights", lambda place: resolve.append(place) or resolve_weights(place))
        assert "give it with --base" in refused(inside / "lora.pt", content)
    assert "hf:jane/voice" not in resolve


@pytest.fixture
def folder(tmp_path) -> Path:
    """Weights as the hub keeps them."""
    (tmp_path / "voice").mkdir()
    write_folder(model_payload(tiny_captioner_model()), tmp_path / "voice")
    return tmp_path / "voice"


def test_a_folder_that_is_its_own_base_is_refused(folder):
    """Its SHA-256 is that of the tensors, so the config can name them: loading took all memory, and never ended."""
    config = json.loads((folder / "config.json").read_text())
    base = {"weights": "model.safetensors", "sha256": sha256(folder / "model.safetensors")}
    lora = {"rank": 1, "alpha": 1, "targets": []}
    (folder / "config.json").write_text(json.dumps(config | {"base": base, "lora": lora}))
    with soon(20):
        for load in (load_checkpoint, lambda file: places.files_behind(file, None)):
            with pytest.raises(UserError, match="config.json names a base, and only adapters in a .pt have one"):
                load(str(folder))


def test_a_config_of_millions_of_empty_objects_is_not_parsed(folder):
    """200 MB of it took 5 GB before a word was said."""
    (folder / "config.json").write_text('{"format": "clipcap", "record": [' + "{}," * 5_000_000 + "{}]}")
    with pytest.raises(UserError, match="config.json holds more than 5,000,000 lists and objects"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("build", [os.mkfifo, lambda file: file.touch() or os.truncate(file, 4 << 30)])
def test_a_pipe_or_gigabytes_beside_the_tensors_are_not_read(folder, name, build):
    """Guards against waiting for a writer that never comes, and against a text of 4 GB in memory."""
    (folder / name).unlink()
    build(folder / name)
    with soon(20), pytest.raises(UserError, match=f"{name} is no file of at most 200 MB"):
        load_checkpoint(folder)


def test_a_clip_outside_the_folder_of_the_weights_is_for_the_user_to_name(tmp_path):
    weights = save_tiny_weights(tmp_path / "theirs")
    elsewhere = save_tiny_clip(tmp_path / "elsewhere")
    Captioner.load(weights)  # its CLIP lies beside it
    content = torch.load(weights, weights_only=True)
    file = str(elsewhere / "open_clip_model.safetensors")
    for changes in ({"clip_model": str(elsewhere)}, {"clip_model": "ViT-B/32", "clip_pretrained": file}):
        torch.save(with_config(content, **changes), weights)
        with pytest.raises(UserError, match="lies outside the file's own folder.*--clip") as caught:
            Captioner.load(weights)
        assert "\n" not in str(caught.value)
        Captioner.load(weights, clip=elsewhere)
    with pytest.raises(UserError, match="neither a file nor the name of weights"):
        Captioner.load(weights, clip="ViT-B/32")  # and the file still does not decide which weights are opened


def test_the_weights_within_a_name_of_a_clip_are_a_place_too(tmp_path, monkeypatch):
    """In the current folder, NAME:/elsewhere/file.pt is a path that seems to lie within it."""
    weights = save_tiny_weights(tmp_path / "theirs")
    file = save_tiny_clip(tmp_path / "elsewhere") / "open_clip_model.safetensors"
    torch.save(with_config(torch.load(weights, weights_only=True), clip_model=f"ViT-B/32:{file}"), weights)
    monkeypatch.chdir(weights.parent)
    with pytest.raises(UserError, match="lies outside the file's own folder.*--clip"):
        Captioner.load(weights)


def test_a_clip_whose_tokenizer_is_gone_is_fetched_with_one_sentence(tmp_path):
    weights = save_tiny_weights(tmp_path)
    named = TINY_CLIP["text_cfg"] | {"hf_tokenizer_name": "somebody/tokenizer"}
    save_tiny_clip(tmp_path / "clip", text_cfg=named)
    with pytest.raises(UserError, match="the tokenizer of CLIP .* could not be loaded"):
        fetch.main([str(weights)])


def test_a_folder_that_is_named_like_a_model_is_not_taken_for_it(tmp_path, monkeypatch):
    weights = save_tiny_weights(tmp_path / "theirs")
    torch.save(with_config(torch.load(weights, weights_only=True), clip_model="RN50"), weights)
    save_tiny_clip(tmp_path / "RN50")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--clip"):
        Captioner.load(weights)


@pytest.mark.parametrize("member", ["data.pkl", "byteorder", "data/0"])
def test_what_unfolds_to_any_size_is_refused(tmp_path, contents, member):
    """Guards against a file of megabytes that takes all memory: 6 MB were 9 GB."""
    torch.save(contents["mlp"], tmp_path / "weights.pt")
    compress(tmp_path / "weights.pt", member)
    with pytest.raises(UserError, match=f"weights.pt cannot be read.*{member}' in the archive is compressed"):
        load_checkpoint(tmp_path / "weights.pt")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = str(file)

    def __reduce__(self):
        return (os.system, (f"touch '{self.file}'",))


class Doubled:
    """Unpickled, it is a text of twice the length."""

    def __reduce__(self):
        return (codecs.encode, (b"text", "hex"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("growing", [Zeros(), Doubled()], ids=["zeros", "doubled"])
def test_a_few_bytes_do_not_fill_the_memory(tmp_path, contents, growing, zipped):
    """Guards against PyTorch's reader, which makes as many zeros as a pickle asks for."""
    torch.save(contents["mlp"] | {"more": growing}, tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="more than tensors and plain values: it was not loaded"):
        read(tmp_path / "weights.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("place", ["weights", "base", "literal captioner", "published"])
def test_no_code_in_a_file_of_weights_runs(tmp_path, contents, place, zipped):
    """Guards against `weights_only=False`, for each file that is read and in both formats of torch.save."""
    code, path = Touch(tmp_path / "ran"), tmp_path / "weights.pt"
    content = {
        "weights": contents["mlp"] | {"record": code},
        "base": contents["mlp"] | {"record": code},
        "literal captioner": contents["mlp"] | {"literal_captioner": code},
        "published": contents["published"] | {"extra": code},
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    overrides = {}
    if place == "base":
        base = Base.of(str(path))
        torch.save(contents["lora"] | {"base": vars(base)}, tmp_path / "lora.pt")
        path, overrides = tmp_path / "lora.pt", {"base": str(path)}
    with pytest.raises(UserError, match="more than tensors and plain values: it was not loaded") as caught:
        load_checkpoint(path, **overrides)
    assert not (tmp_path / "ran").exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        *(
            "{literal.__class__}",
            "{literal[0]}",
            "{literal:>9999999999}",
            "{literal:}}",
            "{literal!r}",
            "{literal!s:9}",
        ),
        *("{literal:{literal}}", "{}", "{0}", "{other}", "{literal", "}", "\ud83d", "word " * 5000),
    ],
)
def test_a_template_is_checked(template):
    begun = time.process_time()
    with pytest.raises(UserError, match="the prompt template") as caught:
        check_template(template)
    assert time.process_time() - begun < 1 and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "template", [*filter(None, PROMPTS.values()), "", "{{braces}} {literal}", "a 🐶 {literal}" * 9]
)
def test_a_good_template_passes(template):
    check_template(template)


def test_the_empty_tokenizer_of_a_machine_without_a_network_is_refused(tmp_path, monkeypatch):
    """transformers hands one back without a word, and then every caption is empty."""
    from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", lambda source, **_: GPT2Tokenizer())
    name = "somebody/gpt2"  # GPT-2's own comes with the package
    for refuse in (lambda: load_tokenizer(name), lambda: tokenizer_of(ClipCapConfig(language_model=name))):
        with pytest.raises(UserError, match=r"the tokenizer of .* has \d tokens?.*go online once") as caught:
            refuse()
        assert "\n" not in str(caught.value)


def test_a_tokenizer_without_the_models_vocabulary_is_refused():
    tokenizer = byte_tokenizer()  # 257 tokens
    for size, fits in ((257, True), (320, True), (384, True), (385, False), (50257, False), (256, False), (200, False)):
        config = tiny_config(tokenizer=tokenizer.to_str())
        config.gpt2["vocab_size"] = size
        if fits:
            assert tokenizer_of(config).get_vocab_size() == 257
        else:
            with pytest.raises(UserError, match=f"in the weights has 257 tokens, and the model has {size}"):
                tokenizer_of(config)
    for text in ("{}", "null", "[" * 1000):
        with pytest.raises(UserError, match="cannot be read"):
            tokenizer_of(tiny_config(tokenizer=text))
    without_end = tokenizer.to_str().replace("<|endoftext|>", "<|other|>")
    with pytest.raises(UserError, match=r"no <\|endoftext\|> token"):
        tokenizer_of(ClipCapConfig(tokenizer=without_end, gpt2={"vocab_size": 257}))


def test_a_tokenizer_in_a_file_cannot_pad_or_cut():
    """Padding to a billion tokens would take all memory."""
    tokenizer = byte_tokenizer()
    tokenizer.enable_padding(length=5000)
    tokenizer.enable_truncation(1)
    config = tiny_config(tokenizer=tokenizer.to_str())
    config.gpt2["vocab_size"] = 257
    assert len(tokenizer_of(config).encode("four").ids) == 4


@pytest.mark.parametrize("place", ["version", "activation_function", "layer_norm_epsilon", "attn_pdrop", "n_layer"])
def test_a_value_that_takes_for_ever_to_write_out_is_not_written_out(tmp_path, contents, place):
    """A list that holds itself 2^60 times over is a file of 2 KB; a message that shows it would never end."""
    content, endless = copy.deepcopy(contents["mlp"]), ["a"]
    for _ in range(60):
        endless = [endless, endless]
    if place == "version":
        content["version"] = endless
    else:
        content["config"]["gpt2"][place] = endless
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="a list") as refused:
        load_checkpoint(tmp_path / "weights.pt")
    assert len(str(refused.value)) < 1000


def test_a_message_holds_no_signs_that_a_terminal_obeys(tmp_path, contents):
    torch.save(contents["mlp"] | {"version": "\x1b]0;new title\x07\nerror: "}, tmp_path / "weights.pt")
    with pytest.raises(UserError) as refused:
        load_checkpoint(tmp_path / "weights.pt")
    assert str(refused.value).isprintable()
