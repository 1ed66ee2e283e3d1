"""Guards the fast vision transformer: open_clip's own embeddings, and hands off every model that is not quite it."""

from functools import partial

import numpy as np
import open_clip
import pytest
import torch
from tiny import TINY_CLIP, save_tiny_clip
from torch import Tensor

from clipcap.clip.encoder import ClipEncoder
from clipcap.fast import linear
from clipcap.fast.vit import FastViT, is_plain_vit

BF16 = torch.bfloat16
VISION = TINY_CLIP["vision_cfg"] | {"layers": 3}


def tiny(quick_gelu: bool = False, **vision) -> torch.nn.Module:
    """A CLIP whose every parameter is random: zeros would hide a bias that is left out."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_CLIP | {"vision_cfg": VISION | vision, "quick_gelu": quick_gelu}).eval()
    for parameter in model.requires_grad_(False).parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def relative_error(ours: Tensor, wanted: Tensor) -> float:
    return ((ours - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"no_ln_pre": True},
        {"layers": 1},
        {"final_ln_after_pool": True},
        {"image_size": (32, 48)},
        {"image_size": 36},
    ],
)
def test_embeddings_equal_open_clips(monkeypatch, vision, quick_gelu, packed):
    if not packed:
        monkeypatch.setattr(linear, "can_pack", lambda weight: False)
    visual = tiny(quick_gelu, **vision).visual
    assert is_plain_vit(visual)
    images = torch.randn(5, 3, *visual.image_size)
    wanted = visual(images)
    assert relative_error(FastViT(visual, Tensor.detach)(images), wanted) < 1e-5
    half = FastViT(visual, partial(Tensor.to, dtype=BF16))(images.to(BF16))
    assert half.dtype == BF16
    assert torch.cosine_similarity(half.float(), wanted).min() > 0.9995


@pytest.mark.parametrize("model", ["ViT-B-32-quickgelu", "ViT-B-32"])
def test_a_full_size_model(model):
    """Rounding adds up over twelve blocks of width 768."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(model)
    visual = open_clip.CLIP(**config | {"text_cfg": TINY_CLIP["text_cfg"]}).eval().requires_grad_(False).visual
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        wanted = visual(images)
        assert relative_error(FastViT(visual, Tensor.detach)(images), wanted) < 1e-4
        half = FastViT(visual, partial(Tensor.to, dtype=BF16))(images.to(BF16)).float()
    assert torch.cosine_similarity(half, wanted).min() > 0.9995


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu", "ViT-L-14-336", "ViT-H-14"])
def test_the_usual_models_are_fast(name):
    with torch.device("meta"):
        assert is_plain_vit(open_clip.CLIP(**open_clip.get_model_config(name)).visual)


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "convnext_base", "EVA02-B-16"])
def test_other_architectures_are_left_alone(name):
    config = open_clip.get_model_config(name)
    try:
        with torch.device("meta"):
            visual = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
    except RuntimeError as error:
        pytest.skip(f"cannot be built here: {error}")
    assert not is_plain_vit(visual)


@pytest.mark.parametrize(
    "vision",
    [
        {"pool_type": "avg"},
        {"attentional_pool": True},
        {"output_tokens": True},
        {"ls_init_value": 1e-5},
        {"qk_norm": True},
        {"scale_attn": True},
        {"block_type": "custom"},
    ],
)
def test_variants_are_left_alone(vision):
    """Each would load, and give other embeddings."""
    assert not is_plain_vit(tiny(**vision).visual)


def test_a_changed_block_is_left_alone():
    visual = tiny().visual
    visual.transformer.resblocks[-1].mlp.gelu = torch.nn.ReLU()
    assert not is_plain_vit(visual)


@pytest.mark.parametrize("vision", [{}, {"pool_type": "avg"}])
def test_the_encoder_takes_the_fast_way_only_where_it_is_open_clips(tmp_path, monkeypatch, vision):
    """Parts of a batch are encoded alone, so that their activations stay in the caches: in order, none lost."""
    folder = save_tiny_clip(tmp_path, vision_cfg=VISION | vision)
    encoder, plain = ClipEncoder.load(folder), ClipEncoder.load(folder, fast=False)
    assert (encoder.vit is None) == bool(vision)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    if encoder.vit:
        monkeypatch.setattr(encoder.vit, "at_once", 3)
    images = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    assert relative_error(encoder.encode_pixels(pixels), plain.model.encode_image(images)) < 1e-5
