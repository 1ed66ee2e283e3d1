"""Language models other than GPT-2: every architecture computes, decodes, trains and comes back as transformers has it."""

import pytest
import torch
from tiny import tiny_config
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from clipcap.decoding.options import Decoding
from clipcap.model.clipcap import ClipCap
from clipcap.model.networks import plain_settings
from clipcap.model.settings import ARCHITECTURES
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
# What each architecture needs besides, and what its published models have.
MORE = {
    "gpt_neox": {"intermediate_size": 64, "hidden_dropout": 0.1},
    "llama": {"intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "mistral": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64},
    "olmo2": {"intermediate_size": 64, "num_key_value_heads": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16, "dropout": 0.1},
    "phi": {"intermediate_size": 64, "num_key_value_heads": 4, "resid_pdrop": 0.1},
    "qwen2": {"intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16},
    "stablelm": {"intermediate_size": 64, "num_key_value_heads": 2, "use_qkv_bias": True},
    "starcoder2": {"intermediate_size": 64, "num_key_value_heads": 2, "sliding_window": 100},
}
PROMPTS = [[1, 2, 3], [5], [], [7, 8], [9, 9, 9, 9, 9], [4]]
METHODS = [
    Decoding(max_tokens=20),
    Decoding(method="beam", beams=4, max_tokens=20, return_all=True),
    Decoding(method="nucleus", num_captions=3, max_tokens=20, return_all=True, temperature=0.8, seed=5),
]
each = pytest.mark.parametrize("kind", ARCHITECTURES)


def settings(kind: str, vocabulary: int = 211):
    return CONFIG_MAPPING[kind](**SIZES, **MORE[kind], vocab_size=vocabulary, pad_token_id=None)


def tiny_network(kind: str, **changes) -> ClipCap:
    config = settings(kind)
    torch.manual_seed(3)
    tied = config.tie_word_embeddings
    model = ClipCap(tiny_config(gpt2={}, network=plain_settings(config), tied_head=tied, **changes)).eval()
    with torch.no_grad():
        for parameter in model.gpt.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    return model


def embeddings(rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(3))


@each
@torch.inference_mode()
def test_a_batch_decodes_as_each_row_alone_and_as_without_a_cache(kind):
    """Guards against prompts whose padding is seen, positions that count it, and beams with another's past."""
    model = tiny_network(kind)
    for decoding in METHODS:
        together = model.generate(embeddings(), decoding, PROMPTS)
        alone = [model.generate(embeddings()[row : row + 1], decoding, [PROMPTS[row]])[0] for row in range(6)]
        assert together == alone
    for embedding, prompt, found in zip(
        embeddings(), PROMPTS, model.generate(embeddings(), METHODS[0], PROMPTS), strict=True
    ):
        tokens = list(prompt)
        for _ in found:
            tokens.append(int(model(embedding[None], torch.tensor([[*tokens, 0]]))[0, -1].argmax()))
        assert tokens == [*prompt, *found]


@each
def test_the_logits_are_those_of_transformers_own_forward_pass(kind):
    """Guards against an architecture that scales its logits or embeddings where ClipCap does not pass."""
    model = tiny_network(kind)
    tokens = torch.tensor([[5, 6, 7, 8]])
    prefix = model.prefix(embeddings(1))
    embedded = torch.cat((prefix, model.gpt.get_input_embeddings()(tokens[:, :-1])), 1)
    theirs = model.gpt(inputs_embeds=embedded).logits[:, model.config.prefix_length - 1 :]
    torch.testing.assert_close(model(embeddings(1), tokens), theirs)


@each
def test_weights_come_back_as_they_were(kind, tmp_path):
    """Guards against buffers that no file holds, such as the frequencies of rotary positions."""
    model = tiny_network(kind)
    save_checkpoint(model, tmp_path / "weights.pt")
    again = load_checkpoint(tmp_path / "weights.pt")
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert again.config == model.config
    assert torch.equal(again(embeddings(1), tokens), model(embeddings(1), tokens))
    rounded = again.to(torch.bfloat16).float()
    frequencies = {name: buffer for name, buffer in model.named_buffers()}
    for name, buffer in rounded.named_buffers():
        assert torch.equal(buffer, frequencies[name]), name
