"""CLIP's vision transformer for inference, from the weights of open_clip's: the same embeddings, sooner.

Patches by a linear layer instead of a convolution, packed weights, and of the last block only what the class token
needs. Any other architecture keeps open_clip's own forward pass.

Shapes: B images, H x W pixels, N tokens (the class token, then the patches), D width, C CLIP width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipcap.fast.linear import prepare_weight

Cast = Callable[[Tensor], Tensor]

TOKENS_AT_ONCE = 800  # measured: fewer multiply slower, the activations of more leave the caches
NORMS = ("LayerNorm", "LayerNormFp32")
QUICK = 1.702  # QuickGELU(x) = x * sigmoid(1.702 x) = SiLU(1.702 x) / 1.702
BLOCK = {
    *(f"{name}.{kind}" for name in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj") for kind in ("weight", "bias")),
    *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
}
ENDS = {"class_embedding", "positional_embedding", "conv1.weight", "ln_post.weight", "ln_post.bias", "proj"}


def is_plain_vit(visual: nn.Module) -> bool:
    """Whether this is open_clip's VisionTransformer, with nothing in it but what `FastViT` computes.

    Types, options and all parameters are asked for by name: a variant that is not known here answers no.
    """
    ends = {name for name, _ in visual.named_parameters() if not name.startswith("transformer.")}
    return (
        _is(visual, "VisionTransformer")
        and _is(visual.transformer, "Transformer")
        and ends - {"ln_pre.weight", "ln_pre.bias"} == ENDS
        and visual.pool_type == "tok"
        and not visual.output_tokens
        and (_is(visual.ln_pre, *NORMS) or type(visual.ln_pre) is nn.Identity)
        and _is(visual.ln_post, *NORMS)
        and all(map(_is_plain_block, visual.transformer.resblocks))
    )


def _is_plain_block(block: nn.Module) -> bool:
    return (
        _is(block, "ResidualAttentionBlock")
        and {name for name, _ in block.named_parameters()} == BLOCK
        and all(_is(norm, *NORMS) for norm in (block.ln_1, block.ln_2))
        and type(block.attn) is nn.MultiheadAttention
        and [name for name, _ in block.mlp.named_children()] == ["c_fc", "gelu", "c_proj"]
        and (type(block.mlp.gelu) is nn.GELU or _is(block.mlp.gelu, "QuickGELU"))
    )


def _is(module: nn.Module, *names: str) -> bool:
    return type(module).__name__ in names and type(module).__module__.startswith("open_clip.")


class FastViT:
    """Images (B, 3, H, W), normalised -> embeddings (B, C).

    Args:
        visual: one that `is_plain_vit`, in fp32: weights that are scaled here should be rounded once.
        cast: what brings a tensor into the precision and onto the device of the images.
    """

    def __init__(self, visual: nn.Module, cast: Cast) -> None:
        self.patch = visual.conv1.stride
        self.patches = prepare_weight(cast(visual.conv1.weight.permute(0, 2, 3, 1).flatten(1)), None)
        self.class_embedding, self.positions = cast(visual.class_embedding), cast(visual.positional_embedding)
        self.norm_before, self.norm_after = _norm(visual.ln_pre, cast), _norm(visual.ln_post, cast)
        self.blocks = [_Block(block, cast) for block in visual.transformer.resblocks]
        self.project = prepare_weight(cast(visual.proj.t()), None)
        self.at_once = max(1, TOKENS_AT_ONCE // len(self.positions))  # the batch size that suits a CPU

    def __call__(self, images: Tensor) -> Tensor:
        (batch, _, height, width), (down, across) = images.shape, self.patch
        pixels = images.permute(0, 2, 3, 1).reshape(batch, height // down, down, width // across, across * 3)
        patches = self.patches(pixels.transpose(2, 3).flatten(3).flatten(1, 2))
        x = torch.cat((self.class_embedding.expand(batch, 1, -1), patches), dim=1) + self.positions  # (B, N, D)
        x = self.norm_before(x)
        for block in self.blocks[:-1]:
            x = block(x, x)
        return self.project(self.norm_after(self.blocks[-1](x, x[:, :1])[:, 0]))


class _Block:
    def __init__(self, block: nn.Module, cast: Cast) -> None:
        self.heads = block.attn.num_heads
        self.norm_1, self.norm_2 = _norm(block.ln_1, cast), _norm(block.ln_2, cast)
        weight, bias = cast(block.attn.in_proj_weight), cast(block.attn.in_proj_bias)
        width = block.attn.embed_dim
        self.query = prepare_weight(weight[:width], bias[:width])  # apart, as the last block asks for one token
        self.keys_values = prepare_weight(weight[width:], bias[width:])
        self.attention_output = prepare_weight(cast(block.attn.out_proj.weight), cast(block.attn.out_proj.bias))
        up, activation, down = block.mlp.c_fc, block.mlp.gelu, block.mlp.c_proj
        scale, activation = (1, activation) if isinstance(activation, nn.GELU) else (QUICK, nn.SiLU())
        self.up = prepare_weight(cast(up.weight * scale), cast(up.bias * scale), activation)
        self.down = prepare_weight(cast(down.weight / scale), cast(down.bias))

    def __call__(self, x: Tensor, wanted: Tensor) -> Tensor:
        """All tokens x (B, N, D) and the first of them (B, W, D), those that are wanted -> these after the block."""
        normal = self.norm_1(x)
        query = self.query(normal[:, : wanted.shape[1]]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = self.keys_values(normal).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, keys, values)  # (B, heads, W, D / heads)
        wanted = wanted + self.attention_output(mixed.transpose(1, 2).flatten(2))
        return wanted + self.down(self.up(self.norm_2(wanted)))


def _norm(layer: nn.Module, cast: Cast) -> Callable[[Tensor], Tensor]:
    if isinstance(layer, nn.Identity):
        return layer
    shape, weight, bias, epsilon = layer.normalized_shape, cast(layer.weight), cast(layer.bias), layer.eps
    return partial(F.layer_norm, normalized_shape=shape, weight=weight, bias=bias, eps=epsilon)
