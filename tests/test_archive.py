"""OpenAI's CLIP files are TorchScript archives: read to the bit as PyTorch reads them, and nothing in them runs."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_CLIP, Zeros, compress, save_tiny_clip, soon
from torch import nn

from clipcap.clip.archive import read_archive
from clipcap.clip.encoder import ClipEncoder
from clipcap.clip.loading import _from_folder
from clipcap.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4).half()
        self.linear.weight = nn.Parameter(self.linear.weight.t().contiguous().t())  # other strides
        self.register_buffer("table", torch.arange(6.0).view(2, 3).t())
        self.register_buffer("row", self.table[1])  # shares its numbers with the table, and begins further on
        self.register_buffer("unsaved", torch.ones(2), persistent=False)
        self.register_buffer("nothing", torch.empty(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table.sum() + self.row.sum()


class Outer(nn.Module):
    """Everything that the attributes of OpenAI's modules are made of, and more."""

    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.mask = self.table = torch.ones(3)  # tensors, but neither parameters nor buffers
        self.words, self.number, self.pair, self.sizes = ["x", "y"], 5, (1, 2.5), {"a": 1}
        self.numbers = [1, 2, 3]
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.again = self.layers[0]
        self.scale = nn.Parameter(torch.ones(()))
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = (
            self.mask.sum()
            + self.table.sum()
            + self.number
            + len(self.words)
            + self.pair[0]
            + self.sizes["a"]
            + self.numbers[0]
        )
        return self.inner(self.again(x)) * self.scale + kept


@pytest.mark.parametrize("trace", [False, True], ids=["scripted", "traced"])
def test_an_archive_is_read_to_the_bit(tmp_path, trace):
    torch.manual_seed(0)
    path = tmp_path / "model.pt"
    (torch.jit.trace(Outer(), torch.ones(2, 2)) if trace else torch.jit.script(Outer())).save(path)
    wanted, found = torch.jit.load(path).state_dict(), read_archive(path)
    assert found.keys() == wanted.keys() and "inner.linear.weight" in found and not {"mask", "table"} & found.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].stride() == tensor.stride(), name
        assert torch.equal(found[name], tensor), name
    shared = [found[name].untyped_storage().data_ptr() for name in ("inner.table", "inner.row")]
    assert shared[0] == shared[1]


class WritesAFile(nn.Module):
    """What it holds is written to a file when PyTorch loads the archive."""

    def __init__(self):
        super().__init__()
        self.tensor = torch.ones(1)

    @torch.jit.export
    def __getstate__(self):
        return (self.tensor, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        torch.save(state[0], "written_by_the_archive")
        self.tensor, self.training = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.tensor


def clip_config(folder: Path) -> Path:
    """A folder that is a CLIP, all but its weights."""
    save_tiny_clip(folder)
    (folder / "open_clip_model.safetensors").unlink()
    return folder


def test_code_that_an_archive_runs_while_it_loads_does_not_run(tmp_path, monkeypatch):
    """Guards against `torch.jit.load`, under which this archive writes a file."""
    monkeypatch.chdir(tmp_path)
    path = clip_config(tmp_path / "clip") / "weights.pt"
    torch.jit.script(WritesAFile()).save(path)
    written = tmp_path / "written_by_the_archive"
    torch.jit.load(path)
    assert written.exists(), "the archive is harmless, so this test shows nothing"
    written.unlink()
    refused(path.parent)
    assert not written.exists()


def refused(folder: Path) -> str:
    with pytest.raises(UserError, match="does not hold weights") as caught:
        ClipEncoder.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = str(file)

    def __reduce__(self):
        return (os.system, (f"touch '{self.file}'",))


def archive(path: Path, content: bytes, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", content)
        file.writestr("m/code/__torch__.py", "class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n")
        for name, data in members.items():
            file.writestr(f"m/data/{name}", data)


def test_a_pickle_in_an_archive_runs_nothing(tmp_path):
    path = clip_config(tmp_path / "clip") / "weights.pt"
    archive(path, pickle.dumps({"model": Touch(tmp_path / "ran")}, protocol=2))
    assert "system" in refused(path.parent) and not (tmp_path / "ran").exists()


def module(state: bytes) -> bytes:
    """The pickle of one module of class M with this state, in opcodes."""
    return b"\x80\x02c__torch__\nM\n)\x81" + state + b"b."


def storage(kind: bytes, key: bytes, count: int) -> bytes:
    """The state of a module with one attribute, a storage, in opcodes."""
    texts = [b"X" + len(text).to_bytes(4, "little") + text for text in (b"a", b"storage", key, b"cpu")]
    return (
        b"}" + texts[0] + b"(" + texts[1] + b"c" + kind + b"\n" + texts[2] + texts[3] + b"K" + bytes([count]) + b"tQs"
    )


@pytest.mark.parametrize(
    ("content", "members", "told"),
    [
        (pickle.dumps({"a": 1}, protocol=2), {}, "holds no model"),
        (module(b"K\x01"), {}, "holds no attributes"),
        (b"not a pickle", {}, ""),
        (module(storage(b"builtins\neval", b"0", 1)), {"0": b"1234"}, "builtins.eval"),
        (module(storage(b"torch\nFloatStorage", b"0", 9)), {"0": b"1234"}, "another size"),
        (module(storage(b"torch\nFloatStorage", b"../data.pkl", 1)), {}, "unknown kind"),
        (module(b"q\x00}X\x01\x00\x00\x00ah\x00s"), {}, "nested too deeply"),
    ],
    ids=["no module", "no attributes", "no pickle", "eval as a type", "too few numbers", "a path", "a circle"],
)
def test_broken_archives_get_one_sentence(tmp_path, content, members, told):
    path = clip_config(tmp_path / "clip") / "weights.pt"
    archive(path, content, **members)
    assert told in refused(path.parent)


def test_a_pickle_changes_nothing_of_its_reader(tmp_path):
    """BUILD sets attributes on what stands before it, and on a function that lasts for the next archive."""
    for name in ("_utils\n_rebuild_tensor_v2", "jit._pickle\nrestore_type_tag"):
        state = b"N}X\x0c\x00\x00\x00__defaults__)s\x86"
        archive(tmp_path / "a.pt", b"\x80\x02ctorch." + name.encode() + b"\n" + state + b"b.")
        with pytest.raises(AttributeError):
            read_archive(tmp_path / "a.pt")


def test_a_tensor_cannot_reach_beyond_its_numbers(tmp_path):
    """Otherwise the memory beside them would become weights."""
    torch.jit.script(Outer()).save(tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            # The table's size, (3, 2), becomes (3, 200).
            bad.writestr(name, data.replace(b"(K\x03K\x02t", b"(K\x03K\xc8t") if name.endswith("data.pkl") else data)
    with pytest.raises(RuntimeError, match="out of bounds"):
        read_archive(tmp_path / "bad.pt")


def test_weights_of_clip_with_nan_are_refused_by_name(tmp_path):
    from safetensors.torch import load_file, save_file

    file = save_tiny_clip(tmp_path) / "open_clip_model.safetensors"
    tensors = load_file(file)
    tensors["visual.proj"][3, 1] = torch.nan
    save_file(tensors, file)
    assert "visual.proj holds NaN" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": 10**9}, "wants 1000000000 layers"),
        ({"layers": -1}, "wants -1 layers"),
        ({"layers": [3, 10**9]}, "wants 1000000000 layers"),
        ({"layers": True}, "wants True layers"),
        ({"hf_model_name": "/tmp/model"}, "hf_model_name '/tmp/model', which is no model's name"),
        ({"hf_model_name": "../model"}, "no model's name"),
        ({"timm_model_name": "hf-hub:somebody/model"}, "no model's name"),
        ({"timm_model_name": "local-dir:/tmp"}, "no model's name"),
        ({"tokenizer_kwargs": {"trust_remote_code": True}}, "other options than clean, language, strip_sep_token"),
        ({"tokenizer_kwargs": ["trust_remote_code"]}, "other options"),
    ],
)
def test_the_config_of_a_clip_leads_nowhere(tmp_path, changes, told):
    config = json.loads((save_tiny_clip(tmp_path) / "open_clip_config.json").read_text())
    for part in ("text_cfg", "vision_cfg"):
        changed = config["model_cfg"] | {part: config["model_cfg"][part] | changes}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config | {"model_cfg": changed}))
        with pytest.raises(UserError) as caught:
            ClipEncoder.load(tmp_path)
        assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("preprocess_cfg", None, "no dictionary"),
        ("preprocess_cfg", [1], "no dictionary"),
        ("preprocess_cfg", {"mean": "abc"}, "three numbers"),
        ("preprocess_cfg", {"mean": [0.5] * 4}, "three numbers"),
        ("preprocess_cfg", {"mean": [float("nan")] * 3}, "three numbers"),
        ("preprocess_cfg", {"std": [0, 0, 0]}, "three numbers"),
        ("preprocess_cfg", {"fill_color": "red"}, "grey value"),
        ("preprocess_cfg", {"resize_mode": ["x"]}, "resize_mode"),
        ("preprocess_cfg", {"interpolation": {}}, "interpolation"),
        ("text_cfg", 5, "no text_cfg"),
        ("text_cfg", None, "no text_cfg"),
        ("text_cfg", "hf_model_name", "no text_cfg"),
        ("vision_cfg", [], "no vision_cfg"),
        ("embed_dim", "16", "embed_dim '16'"),
        ("text_cfg", {"vocab_size": 30_000_000}, "vocab_size '30000000'"),
        ("text_cfg", {"vocab_size": 900_000}, "numbers, and the file"),
        ("text_cfg", {"context_length": 40_000}, "numbers, and the file"),
        ("vision_cfg", {"width": 12_000}, "numbers, and the file"),
        ("vision_cfg", {"image_size": 20_000}, "image_size"),
        ("vision_cfg", {"image_size": [32] * 3}, "image_size"),
        ("vision_cfg", {"patch_size": 0}, "does not hold weights"),
    ],
)
def test_a_config_that_no_clip_has_is_refused_before_it_is_built(tmp_path, part, value, told):
    config = json.loads((save_tiny_clip(tmp_path) / "open_clip_config.json").read_text())
    holder = config if part == "preprocess_cfg" else config["model_cfg"]
    holder[part] = holder[part] | value if isinstance(value, dict) else value
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        ClipEncoder.load(tmp_path)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_of_brackets_gets_one_sentence(tmp_path):
    (save_tiny_clip(tmp_path) / "open_clip_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="open_clip_config.json cannot be read .maximum recursion"):
        ClipEncoder.load(tmp_path)


def test_code_beside_a_tokenizer_does_not_run(tmp_path):
    """A tokenizer_config.json may name a Python file; transformers runs it if told to, or asks on the terminal."""
    save_tiny_clip(tmp_path, text_cfg=TINY_CLIP["text_cfg"] | {"hf_tokenizer_name": "somebody/tokenizer"})
    named = {"auto_map": {"AutoTokenizer": ["code.Evil", None]}, "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "nothing", "auto_map": {"AutoConfig": "code.Evil"}})
    )
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(UserError, match="the tokenizer of CLIP"):
        ClipEncoder.load(tmp_path).encode_texts(["a dog"])
    assert not (tmp_path / "ran").exists()


def test_what_unfolds_to_any_size_is_refused(tmp_path):
    """Guards against a file of megabytes that takes all memory: PyTorch reads compressed members, but writes none."""
    path = clip_config(tmp_path / "clip") / "weights.pt"
    for member in ("data.pkl", "byteorder", "data/0"):
        torch.save({"ln_final.weight": torch.ones(3), "of no model": torch.ones(300_000)}, path)  # as large as one
        compress(path, member)
        assert "is compressed" in refused(path.parent)


def test_a_pickle_in_clips_own_weights_runs_nothing(tmp_path):
    """A zip file that `torch.save` wrote; guards against `weights_only=False`."""
    path = clip_config(tmp_path / "clip") / "weights.pt"
    torch.save({"ln_final.weight": torch.ones(3), "code": Touch(tmp_path / "ran")}, path)
    assert zipfile.is_zipfile(path)
    refused(path.parent)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_few_bytes_do_not_fill_the_memory(tmp_path, zipped):
    """Guards against PyTorch's reader, which makes as many zeros as a pickle asks for; here, a million."""
    path = clip_config(tmp_path / "clip") / "weights.pt"
    content = {"ln_final.weight": torch.ones(3), "more": Zeros(), "of no model": torch.ones(300_000)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "it calls __builtin__ bytearray" in refused(path.parent)


def test_an_archive_cannot_number_its_parts_from_a_billion(tmp_path):
    """Guards against Python's reader, which makes a list of twice that length; here, of a hundred thousand."""
    archive(tmp_path / "a.pt", module(b"}r" + (50_000).to_bytes(4, "little")))
    with pytest.raises(pickle.UnpicklingError, match="it numbers its parts from 50000"):
        read_archive(tmp_path / "a.pt")


def test_the_source_of_a_class_is_read_once(tmp_path, monkeypatch):
    """Guards against 10 MB of source that are searched anew for each of 100,000 modules; here, 400 times 1 MB."""
    state = b"}(" + b"".join(b"X\x04\0\0\0%04dc__torch__.big\nM\n)\x81}b" % number for number in range(400)) + b"u"
    archive(tmp_path / "a.pt", module(state))
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as file:
        file.writestr("m/code/__torch__/big.py", "class M(Module):\n  __parameters__ = []\n" + "class M\n" * 120_000)
    with soon(5):
        assert read_archive(tmp_path / "a.pt") == {}
    monkeypatch.setattr("clipcap.clip.archive.MOST_SOURCE", 100_000)
    with pytest.raises(ValueError, match="more than 100000 bytes of source"):
        read_archive(tmp_path / "a.pt")


def test_the_tokenizer_of_a_clip_of_the_hub_leads_to_no_folder(tmp_path):
    """The name is the tokenizer's own home; a folder that open_clip saved may hold any, since it has the tokenizer."""
    save_tiny_clip(tmp_path, text_cfg=TINY_CLIP["text_cfg"] | {"hf_tokenizer_name": "/srv/somebody/tokenizer"})
    with pytest.raises(UserError, match="names hf_tokenizer_name '/srv/somebody/tokenizer', which is no model's name"):
        _from_folder(tmp_path, has_tokenizer=False)
    _from_folder(tmp_path)


@pytest.mark.parametrize(
    ("part", "value"), [("vision_cfg", {"image_size": 48}), ("text_cfg", {"context_length": 40})], ids=["image", "text"]
)
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_weights_of_another_size_are_refused(tmp_path, part, value, kind):
    """Guards against open_clip, which resizes the positions without a word; such a model sees badly."""
    file = save_tiny_clip(tmp_path) / "open_clip_model.safetensors"
    ClipEncoder.load(tmp_path)
    if kind == "pt":
        torch.save(load_file(file), tmp_path / "weights.pt")
        file.unlink()
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"][part] |= value
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert "model for images or texts of another size" in refused(tmp_path)
