"""Guards the CLIP encoder: the right activation, strict weights, the same embeddings as open_clip, clear refusals."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from PIL import Image
from tiny import TINY_CLIP, save_tiny_clip
from torch.utils._python_dispatch import TorchDispatchMode

from clipcap.clip.encoder import ClipEncoder
from clipcap.clip.loading import registry_name, uses_quick_gelu
from clipcap.clip.names import pretrained_of
from clipcap.errors import UserError
from clipcap.offline import offline_if_unreachable
from clipcap.weights.places import may_follow

NOISE = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def tiny_registry(monkeypatch):
    """open_clip's registry with every model shrunk: the real names and tags, built in no time."""
    real = open_clip.get_model_config

    def shrunk(name):
        return {**TINY_CLIP, "quick_gelu": real(name).get("quick_gelu", False)}

    monkeypatch.setattr(open_clip, "get_model_config", shrunk)


def activations(encoder: ClipEncoder) -> set[type]:
    kinds = (QuickGELU, torch.nn.GELU)
    return {type(module) for module in encoder.model.modules() if isinstance(module, kinds)}


@pytest.mark.parametrize(
    ("name", "pretrained", "quick"),
    [
        ("ViT-B/32", "openai", True),
        ("ViT-B-32", "openai", True),
        ("ViT-L/14@336px", "openai", True),
        ("RN50x4", "openai", True),
        ("ViT-B-32:openai", None, True),
        ("ViT-B-32-quickgelu", "openai", True),
        ("ViT-B-32", "laion400m_e32", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B/32", "laion2b_s34b_b79k", False),
        ("ViT-L-14", "datacomp_xl_s13b_b90k", False),
        ("ViT-H-14", "dfn5b", True),
        ("ViT-B/32", "file", True),
        ("ViT-B-32", "file", False),
        ("ViT-B-32-quickgelu", "file", True),
    ],
)
def test_each_name_gets_its_activation(folder, tiny_registry, monkeypatch, name, pretrained, quick):
    """open_clip only warns when OpenAI's weights meet a model with the wrong activation."""
    file = str(folder / "open_clip_model.safetensors")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: file)
    encoder = ClipEncoder.load(name, file if pretrained == "file" else pretrained)
    assert activations(encoder) == {QuickGELU if quick else torch.nn.GELU}


def test_a_folder_called_like_a_model_is_none_unless_it_holds_one(folder, tiny_registry, tmp_path, monkeypatch):
    """`load_data.py --clip RN50x4 --output RN50x4` makes such a folder: from then on that CLIP could not be loaded."""
    file = str(folder / "open_clip_model.safetensors")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: file)
    monkeypatch.chdir(tmp_path)
    named = ("RN50x4", "ViT-B/32")
    for name in named:
        (tmp_path / name).mkdir(parents=True)
        assert may_follow(name, folder / "weights.pt")
        for asked in (name, f"{name}:openai"):
            assert ClipEncoder.load(asked).identity == {"model": name, "pretrained": "openai", "dim": 16}
        assert pretrained_of(name, "laion") == "laion"
        with pytest.raises(UserError, match="holds no open_clip_config.json"):
            ClipEncoder.load(f"./{name}")
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="'photos' is neither a CLIP model's name nor a folder of one"):
        ClipEncoder.load("photos")
    (tmp_path / "RN50x4.safetensors").symlink_to(file)
    for name in named:
        shutil.copytree(folder, tmp_path / name, dirs_exist_ok=True)
        assert not may_follow(name, folder / "weights.pt")
        for asked in (name, f"./{name}"):
            assert ClipEncoder.load(asked).identity["model"] == str(tmp_path / name)
    assert ClipEncoder.load("RN50x4.safetensors").identity["pretrained"] == "RN50x4.safetensors"


def test_every_tag_agrees_with_open_clip():
    for name, tag in open_clip.list_pretrained():
        if open_clip.get_model_config(name):
            wanted = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
            config = open_clip.get_model_config(name).get("quick_gelu", False)
            assert uses_quick_gelu(name, tag) == (wanted or config)


def test_every_openai_name_is_known():
    from clipcap.clip.names import WIDTHS

    for name in WIDTHS:
        assert open_clip.get_pretrained_cfg(registry_name(name), "openai")


def test_embeddings_equal_open_clips(folder, fast):
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    images = [Image.fromarray(pixels) for pixels in NOISE]
    with torch.no_grad():
        wanted = model.eval().encode_image(torch.stack([transform(image) for image in images]))
        text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(["a dog", "two cats"]))
    encoder = ClipEncoder.load(str(folder), fast=fast)
    torch.testing.assert_close(encoder.encode_images(images, batch_size=2), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.encode_pixels(NOISE), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.encode_texts(["a dog", "two cats"]), text, atol=1e-5, rtol=1e-4)
    assert encoder.identity == {"model": str(folder.resolve()), "pretrained": None, "dim": 16}
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, 16)


def test_a_long_text_is_cut_not_refused(folder):
    assert ClipEncoder.load(folder).encode_texts(["word " * 500]).shape == (1, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_means_weights_in_it(folder, dtype):
    """bf16 autocast over fp32 weights is slower than fp32 on a CPU."""
    encoder = ClipEncoder.load(folder, dtype=dtype)
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {dtype}
    embeddings, exact = encoder.encode_pixels(NOISE), ClipEncoder.load(folder).encode_pixels(NOISE)
    assert embeddings.dtype == torch.float32
    assert torch.cosine_similarity(embeddings, exact).min() > 0.99
    assert encoder.encode_texts(["a dog"]).dtype == torch.float32


class Draws(TorchDispatchMode):
    """Counts the tensors that are filled with random numbers."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            self.count += args[0].device.type != "meta"
        return function(*args, **kwargs or {})


def test_no_random_numbers_are_drawn_for_weights_that_come_from_a_file(folder):
    """Guards against a second at every start for numbers that are replaced at once."""
    with Draws() as draws:
        ClipEncoder.load(folder)
        assert not draws.count
        torch.nn.MultiheadAttention(16, 2)
        assert draws.count, "and afterwards they are drawn as ever"


def test_the_thread_count_stays_as_it_is(folder):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    ClipEncoder.load(folder).encode_pixels(NOISE)
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 2


@pytest.mark.parametrize("suffix", ["bin", "pt"])
def test_a_folder_with_other_names(folder, tmp_path, suffix):
    model = ClipEncoder.load(folder, fast=False).model
    torch.save(model.state_dict(), tmp_path / f"weights.{suffix}")
    (tmp_path / "config.json").write_text((folder / "open_clip_config.json").read_text())
    encoder = ClipEncoder.load(tmp_path)
    torch.testing.assert_close(encoder.encode_pixels(NOISE), ClipEncoder.load(folder).encode_pixels(NOISE))
    assert encoder.encode_texts(["a dog"]).shape == (1, 16)


def test_the_image_tower_is_there_once(folder):
    """Guards against CLIP's largest part twice on a GPU: as it was loaded, and prepared."""
    fast, plain = (ClipEncoder.load(folder, fast=fast) for fast in (True, False))
    assert fast.vit and not hasattr(fast.model, "visual") and hasattr(plain.model, "visual")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    torch.testing.assert_close(fast.encode_pixels(pixels), plain.encode_pixels(pixels), atol=1e-5, rtol=1e-4)


def test_openais_own_archive(folder, tiny_registry, tmp_path):
    """What OpenAI publishes is a TorchScript archive, in fp16, with three tensors that are no weights."""
    model = ClipEncoder.load(folder, fast=False).model
    archive = torch.nn.Module()
    for name, parameter in model.state_dict().items():
        *path, leaf = name.split(".")
        owner = archive
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = getattr(owner, part)
        owner.register_buffer(leaf, parameter.half())
    archive.register_buffer("input_resolution", torch.tensor(32))
    file = tmp_path / "ViT-B-32.pt"
    torch.jit.script(archive).save(file)
    encoder = ClipEncoder.load(file, fast=False)
    assert encoder.model_name == "ViT-B/32" and activations(encoder) == {QuickGELU}
    # Guards against plain GELU for OpenAI's weights, without a word, under open_clip's spelling of a name.
    for name, weights in ((f"ViT-B-32:{file}", "openai"), ("ViT-B-32", str(file)), (f"ViT-B/32:{file}", None)):
        assert activations(ClipEncoder.load(name, weights)) == {QuickGELU}, name
    torch.testing.assert_close(
        encoder.model.visual.conv1.weight, model.visual.conv1.weight.detach(), atol=1e-3, rtol=1e-3
    )


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    state = ClipEncoder.load(folder, fast=False).model.state_dict()
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    for broken in ({**state, "extra": torch.ones(1)}, {k: v for k, v in state.items() if k != "ln_final.weight"}):
        torch.save(broken, tmp_path / "weights.pt")
        with pytest.raises(UserError, match="does not hold weights"):
            ClipEncoder.load(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="does not hold weights"):
        ClipEncoder.load(tmp_path)


def test_folders_that_are_not_complete(tmp_path):
    with pytest.raises(UserError, match="open_clip_config.json"):
        ClipEncoder.load(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"embed_dim": 3}))
    with pytest.raises(UserError, match="weights"):
        ClipEncoder.load(tmp_path)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(UserError, match="model_cfg"):
        ClipEncoder.load(tmp_path)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": [' + "{}," * 5_000_000 + "{}]}")
    with pytest.raises(UserError, match="open_clip_config.json holds more than 5,000,000 lists and objects"):
        ClipEncoder.load(tmp_path)


def test_a_config_that_an_editor_began_with_a_byte_order_mark_is_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "clip")
    config = tmp_path / "clip" / "open_clip_config.json"
    config.write_text(config.read_text(), encoding="utf-8-sig")
    assert ClipEncoder.load(tmp_path / "clip").dim == ClipEncoder.load(folder).dim


@pytest.mark.parametrize(
    ("name", "pretrained", "told"),
    [
        ("ViT-B/23", "openai", "ViT-B-32"),
        ("RN50x5", "openai", "RN50x4"),
        ("ViT-B/32", "laion2b", "laion2b_s34b_b79k"),
        ("ViT-B/32", None, "openai"),
        ("nowhere/clip", None, "ViT-B/32"),
    ],
)
def test_an_unknown_name_lists_near_ones(name, pretrained, told):
    with pytest.raises(UserError, match=told):
        ClipEncoder.load(name, pretrained)


@pytest.mark.parametrize("name", ["ViT-B-32:openai", "demo", "FOLDER"])
def test_weights_that_contradict_the_name_are_refused(folder, name):
    """Guards against a tag that is ignored without a word, so that the embeddings are those of other weights."""
    with pytest.raises(UserError, match="laion2b_s34b_b79k has no effect, since CLIP"):
        ClipEncoder.load(folder if name == "FOLDER" else name, "laion2b_s34b_b79k")


def test_no_network_says_which_weights(monkeypatch):
    def offline(tag):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(UserError, match="'openai' of CLIP 'RN50x4'.*RN50x4:FILE") as caught:
        ClipEncoder.load("RN50x4", "openai")
    assert "\n" not in str(caught.value)


def test_without_a_network_the_hub_is_not_asked_again_and_again(monkeypatch):
    """Half a minute of retries for every file, even for those in the cache."""
    import socket

    from huggingface_hub import constants

    def no_name_service(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name_service)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://no-such-hub.invalid")
    offline_if_unreachable()
    assert constants.HF_HUB_OFFLINE
