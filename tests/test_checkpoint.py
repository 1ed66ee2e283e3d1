"""Files of weights: our own rebuild their model, published ones are read whole, and nothing is half-loaded."""

import json
import pickle

import pytest
import torch
from tiny import tiny_model

from clipcap.decoding.options import Decoding
from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap
from clipcap.model.prompts import PROMPTS
from clipcap.weights import convert
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint

EMBEDDING = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[4, 5, 6], [7, 8, 9]])


@pytest.mark.parametrize("mapping", ["mlp", "transformer"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_rebuilds_its_model(tmp_path, mapping, tied):
    model = tiny_model(mapping, prompt=" {literal}", stop_token=9)
    if not tied:
        model.untie_head()
        with torch.no_grad():
            model.gpt.lm_head.weight.mul_(-1)
    model.literal_captioner = tiny_model(seed=5)
    model.record = {"strategy": "full", "losses": {"history": [{"step": 1, "train_loss": 2.5}]}}
    save_checkpoint(model, tmp_path / "weights.pt")
    loaded = load_checkpoint(tmp_path / "weights.pt")
    assert loaded.config == model.config and loaded.record == model.record
    assert torch.equal(loaded(EMBEDDING, TOKENS), model(EMBEDDING, TOKENS))
    literal = loaded.literal_captioner
    assert torch.equal(literal(EMBEDDING, TOKENS), model.literal_captioner(EMBEDDING, TOKENS))
    assert (loaded.gpt.lm_head.weight is loaded.gpt.transformer.wte.weight) == tied


def test_a_tied_head_is_stored_once(tmp_path):
    save_checkpoint(tiny_model(), tmp_path / "tied.pt")
    untied = tiny_model()
    untied.untie_head()
    save_checkpoint(untied, tmp_path / "untied.pt")
    difference = (tmp_path / "untied.pt").stat().st_size - (tmp_path / "tied.pt").stat().st_size
    assert difference > 0.9 * untied.gpt.lm_head.weight.nbytes


def test_a_loaded_model_trains(tmp_path):
    """Tensors mapped from the file must be writable, and the file must stay as it was."""
    save_checkpoint(tiny_model(), tmp_path / "weights.pt")
    before = (tmp_path / "weights.pt").read_bytes()
    model = load_checkpoint(tmp_path / "weights.pt")
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    save_checkpoint(model, tmp_path / "other.pt")
    assert (tmp_path / "weights.pt").read_bytes() == before


def test_overrides_reach_the_config(tmp_path):
    save_checkpoint(tiny_model(), tmp_path / "weights.pt")
    model = load_checkpoint(tmp_path / "weights.pt", heads=2, stop_token=3)
    assert model.config.stop_token == 3 and model.gpt.config.n_head == 2
    for wrong in ({"heads": 5}, {"colour": 1}):
        with pytest.raises(UserError):
            load_checkpoint(tmp_path / "weights.pt", **wrong)


def test_published_files_do_not_say_whether_they_are_normalised_and_ours_do(tmp_path):
    """Guards against a user's own 640-wide transformer that was trained without it and captions as if with it."""
    model = tiny_model("transformer", clip_dim=640)
    torch.save(model.state_dict(), tmp_path / "published.pt")
    published = {"heads": 4, "mapping_heads": 4}
    assert load_checkpoint(tmp_path / "published.pt", **published).config.normalize
    assert load_checkpoint(tmp_path / "published.pt", normalize=None, **published).config.normalize
    assert not load_checkpoint(tmp_path / "published.pt", normalize=False, **published).config.normalize
    save_checkpoint(model, tmp_path / "ours.pt")
    assert not load_checkpoint(tmp_path / "ours.pt", normalize=False).config.normalize
    with pytest.raises(UserError, match="trained without normalisation.*leave --normalize out"):
        load_checkpoint(tmp_path / "ours.pt", normalize=True)


def test_published_prompted_weights_have_no_prompt_unless_it_is_asked_for(tmp_path):
    """Guards against captions that the published code never made: it trains with a prompt, and captions without one."""
    literal = {f"original_model.{name}": tensor for name, tensor in tiny_model(seed=5).state_dict().items()}
    torch.save(tiny_model().state_dict() | literal, tmp_path / "prompted.pt")
    model = load_checkpoint(tmp_path / "prompted.pt", heads=4)
    assert model.config.prompt is None and model.literal_captioner is not None
    asked = load_checkpoint(tmp_path / "prompted.pt", heads=4, prompt=PROMPTS["template"])
    assert asked.config.prompt == PROMPTS["template"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    save_checkpoint(tiny_model(), path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):  # `clipcap.cli.status.run` makes a sentence of it
        save_checkpoint(tiny_model(seed=9), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


class Code:
    def __reduce__(self):
        return (print, ("a pickle ran its code",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"not weights at all", "no file of weights"),
        (pickle.dumps(Code()), "no file of weights"),
        (torch.zeros(3), "holds a Tensor"),
        ({"weight": torch.zeros(3)}, "no ClipCap model: gpt.transformer.wte.weight is missing"),
        ({"format": "clipcap", "version": 99}, "version 99"),
        ({"epoch": 3}, "neither"),
    ],
)
def test_files_that_are_no_weights_get_one_sentence(tmp_path, capsys, content, message):
    path = tmp_path / "weights.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value) and "ran its code" not in capsys.readouterr().out


def test_a_truncated_file_says_so(tmp_path):
    path = tmp_path / "weights.pt"
    save_checkpoint(tiny_model(), path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="truncated"):
        load_checkpoint(path)


def test_unknown_names_list_the_known_ones(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="coco, conceptual, coco-transformer"):
        load_checkpoint("cocoa")
    monkeypatch.setenv("CLIPCAP_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"1IdaBtMSvtyzF0ByVaBHtvM0JYSXRExRX.*{tmp_path}"):
        monkeypatch.setitem(__import__("sys").modules, "gdown", None)
        load_checkpoint("coco")


def test_a_downloaded_file_is_used_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPCAP_CACHE", str(tmp_path))
    torch.save(tiny_model().state_dict(), tmp_path / "coco_weights.pt")
    assert load_checkpoint("coco", heads=4).config.stop_token == convert.STOP


def published_entries(shared) -> dict[str, dict]:
    return json.loads((shared / "published" / "state_dicts.json").read_text())


ENTRIES = [
    *(
        "coco_weights.pt",
        "conceptual_weights.pt",
        "transformer_coco_weights.pt",
        "base_weights.pt",
        "frozen_weights.pt",
    ),
    *("prompted_weights.pt", "lora_4_weights.pt (peft before 0.7)", "lora_4_weights.pt (peft 0.7 and later)"),
]
ALIKE = {"conceptual_weights.pt": "coco_weights.pt", "frozen_weights.pt": "base_weights.pt"}


def random_tensors(entry: dict, scale: float = 0.02) -> dict[str, torch.Tensor]:
    """An entry of state_dicts.json filled with random numbers."""
    torch.manual_seed(0)
    return {
        name: torch.randn(shape) * scale if dtype == "float32" else torch.ones(shape, dtype=getattr(torch, dtype))
        for name, (dtype, shape) in dict(entry["tensors"]).items()
    }


def shrunk(entry: dict) -> dict:
    """The same names at a hundredth of the width, for tests that load a file many times."""
    sizes = {
        768: 16,
        2304: 48,
        3072: 64,
        1536: 32,
        50257: 60,
        1024: 64,
        3840: 80,
        7680: 160,
        512: 12,
        640: 24,
        30720: 640,
    }
    small = {n: [dtype, [sizes.get(s, s) for s in shape]] for n, (dtype, shape) in dict(entry["tensors"]).items()}
    return {"tensors": small}


def test_some_published_files_are_alike(shared):
    """These pairs have the same names, types and shapes, so that one of each is loaded below."""
    entries = published_entries(shared)
    for one, other in ALIKE.items():
        assert entries[one]["tensors"] == entries[other]["tensors"]


@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in ALIKE])
def test_every_published_file_loads_at_full_size(shared, tmp_path, name):
    tensors = random_tensors(published_entries(shared)[name])
    torch.save(tensors, tmp_path / "weights.pt")
    model = load_checkpoint(tmp_path / "weights.pt")
    config = model.config
    transformer = name.startswith("transformer")
    assert config.mapping == ("transformer" if transformer else "mlp")
    assert (config.prefix_length, config.clip_dim) == ((40, 640) if transformer else (10, 512))
    assert config.clip_model == ("RN50x4" if transformer else "ViT-B/32") and config.normalize == transformer
    assert (config.gpt2["n_layer"], config.gpt2["n_head"], config.gpt2["n_embd"]) == (12, 12, 768)
    assert config.stop_token == 13
    if transformer:
        assert (config.clip_length, config.mapping_layers, config.mapping_heads) == (40, 8, 8)
    assert (model.literal_captioner is not None) == name.startswith("prompted") and config.prompt is None
    captions = model.generate(torch.randn(1, config.clip_dim), Decoding(max_tokens=2))
    assert len(captions[0]) in (1, 2)


@pytest.mark.parametrize("name", [ENTRIES[0], ENTRIES[2], *ENTRIES[5:]])  # the others have the same names
def test_a_published_file_with_any_one_tensor_missing_or_renamed_is_refused(shared, tmp_path, name):
    tensors = random_tensors(shrunk(published_entries(shared)[name]))
    path = tmp_path / "weights.pt"
    torch.save(tensors, path)
    load_checkpoint(path, heads=4)
    # The layers are alike, and all names would take minutes.
    for number, lost in enumerate([*list(tensors)[::6], list(tensors)[-1]]):
        for replacement in ({}, {f"{lost}.renamed": tensors[lost]})[: 1 if number % 4 else 2]:
            content = {key: value for key, value in tensors.items() if key != lost} | replacement
            with pytest.raises(UserError):
                published_model(content)


def published_model(content: dict) -> ClipCap:
    from clipcap.weights.checkpoint import _from_published

    return _from_published(content, {"heads": 4})


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.startswith("lora")])
@pytest.mark.parametrize("alpha", [None, 32])
def test_published_lora_gives_the_logits_of_peft_itself(shared, tmp_path, name, alpha):
    """The published code loaded its LoRA file with strict=False into a plain model: nothing was loaded."""
    from peft import LoraConfig, inject_adapter_in_model

    tensors = random_tensors(shrunk(published_entries(shared)[name]), scale=0.2)
    torch.save(tensors, tmp_path / "weights.pt")
    model = load_checkpoint(tmp_path / "weights.pt", heads=4, alpha=alpha)
    peft_model = ClipCap(model.config)
    settings = LoraConfig(r=4, lora_alpha=alpha or 16, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    inject_adapter_in_model(settings, peft_model)
    adapted = {layer for layer, module in peft_model.named_modules() if hasattr(module, "base_layer")}
    names = {}
    for key, tensor in tensors.items():
        key = key.removeprefix("base_model.model.")
        layer, _, leaf = key.rpartition(".")
        names[f"{layer}.base_layer.{leaf}" if layer in adapted else key] = tensor
    peft_model.load_state_dict(names, strict=True)
    peft_model.eval()
    embedding = torch.randn(2, model.config.clip_dim)
    assert torch.allclose(model(embedding, TOKENS), peft_model(embedding, TOKENS), atol=1e-4)
    plain = load_checkpoint_without_adapters(tensors, model)
    assert not torch.allclose(model(embedding, TOKENS), plain(embedding, TOKENS), atol=1e-4)


def load_checkpoint_without_adapters(tensors: dict, like: ClipCap) -> ClipCap:
    from clipcap.weights.format import build

    plain = {key.removeprefix("base_model.model.").replace(".base_layer.", "."): t for key, t in tensors.items()}
    return build(like.config, {key: tensor for key, tensor in plain.items() if "lora_" not in key})
