"""The model against figures of the published code, and the published defects it must not have."""

import gc
import weakref

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, golden, tiny_config, tiny_model

from clipcap.errors import UserError
from clipcap.fast.exchange import speed_up
from clipcap.model.batches import IGNORED, Batch, collate
from clipcap.model.clipcap import ClipCap
from clipcap.training.loader import CaptionDataset
from clipcap.training.losses import Objective

GOLDEN = ["mlp_a", "transformer_a"]


def batch_of(captions, prompts=None, clip_dim=16) -> Batch:
    embeddings = np.random.default_rng(0).normal(size=(len(captions), clip_dim)).astype(np.float32)
    dataset = CaptionDataset(embeddings, captions, prompts)
    return collate([dataset[row] for row in range(len(dataset))])


@pytest.mark.parametrize("name", GOLDEN)
def test_prefix_and_logits_are_those_of_the_published_code(shared, tmp_path, name):
    figures, model = golden(shared, name, tmp_path)
    assert torch.allclose(model.prefix(figures["clip_embedding"]), figures["prefix_embeds"], atol=1e-4)
    logits = model(figures["clip_embedding"], figures["tokens"])
    real = torch.arange(logits.shape[1]) < figures["lengths"][:, None]
    assert torch.allclose(logits[real], figures["logits"][real], atol=1e-4)


@pytest.mark.parametrize("name", GOLDEN)
def test_twenty_training_losses_are_those_of_the_published_code(shared, tmp_path, name, fast):
    figures, model = golden(shared, name, tmp_path)
    only_mapping = figures["config"].get("only_prefix", False)
    model.train_only(lambda parameter: parameter.startswith("clip_project.") or not only_mapping)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=figures["config"]["lr"], weight_decay=0.0)
    objective = Objective(model, fast)
    if fast:
        speed_up(model, large=0)
    losses = []
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = figures["config"]["lr"] * min(step / 4, (20 - step) / 16)
        rows = slice(step % 2, None, 2)
        tokens = figures["tokens"][rows]
        labels = tokens.masked_fill(tokens == 0, IGNORED)  # the published loss ignores token 0
        loss = objective(Batch.of(figures["clip_embedding"][rows], tokens, labels))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == pytest.approx(figures["train_loss"], abs=1e-3)


def test_token_zero_is_learned():
    """The published loss ignores 0 as padding, and 0 is "!": the model never learns it."""
    model = tiny_model()
    losses = model.token_losses(batch_of([[5, 0, 0, 9]]))
    assert len(losses) == 4
    loss = losses[1]
    loss.backward()
    assert model.gpt.transformer.wte.weight.grad[0].abs().sum() > 0


def test_padding_changes_nothing():
    """The published code caches its padded tokens, and from epoch 2 on attends to them."""
    model = tiny_model()
    short, long = [5, 9, 3], [4, 8, 2, 6, 11, 30]
    together = model.token_losses(batch_of([short, long]))
    alone = model.token_losses(batch_of([short]))
    assert torch.allclose(together[:3], alone, atol=1e-5)


def test_caption_may_take_the_last_position_and_one_token_more():
    """The last token is only predicted, so it needs no position; a caption of another token more does not fit."""
    model = tiny_model()
    assert model.room == 128 - 4 + 1
    assert len(model.token_losses(batch_of([[5] * model.room]))) == model.room
    with pytest.raises((IndexError, RuntimeError)):
        model.token_losses(batch_of([[5] * (model.room + 1)]))


def test_loss_sees_no_prompt_token():
    """The published prompted loss compares prompt positions with caption tokens."""
    model = tiny_model()
    batch = batch_of([[5, 9, 3], [4, 8]], prompts=[[20, 21], [22, 23, 24]])
    assert batch.targets.tolist() == [5, 9, 3, 4, 8]
    logits = model(batch.clip_embedding, batch.tokens).detach().requires_grad_()
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
    assert torch.allclose(model.loss(batch), by_hand, atol=1e-5)
    by_hand.backward()
    touched = logits.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False, False, True, True, True], [False, False, False, True, True]]


def test_frozen_parts_take_no_gradient_and_no_dropout():
    """The published code freezes by overriding parameters(): gradients go on accumulating."""
    model = tiny_model()
    model.train_only(lambda name: name.startswith("gpt.transformer.h.1.mlp"))
    model.train()
    assert model.gpt.transformer.h[1].mlp.dropout.training
    assert not model.gpt.transformer.h[1].attn.attn_dropout.training
    assert not model.gpt.transformer.h[0].mlp.dropout.training and not model.gpt.transformer.drop.training
    model.loss(batch_of([[5, 9, 3]])).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        f"gpt.transformer.h.1.mlp.{layer}.{kind}" for layer in ("c_fc", "c_proj") for kind in ("weight", "bias")
    }


def test_nothing_below_the_head_is_recorded_for_autograd():
    model = tiny_model()
    model.untie_head()
    model.train_only(lambda name: "lm_head" in name or "ln_f" in name)
    model.train()
    recorded = []
    hooks = [block.register_forward_hook(lambda _, __, out: recorded.append(out)) for block in model.gpt.transformer.h]
    model.loss(batch_of([[5, 9, 3]])).backward()
    outputs = [out[0] if isinstance(out, tuple) else out for out in recorded]
    assert len(hooks) == len(outputs) and not any(output.requires_grad for output in outputs)


def test_normalised_models_divide_by_the_norm():
    model = tiny_model(normalize=True)
    embedding = torch.randn(3, 16)
    assert torch.allclose(model.prefix(embedding), model.prefix(embedding * 7), atol=1e-5)


def test_embeddings_of_another_clip_are_refused():
    with pytest.raises(UserError, match=r"\(batch, 16\), not \(2, 24\)"):
        tiny_model().prefix(torch.randn(2, 24))


@pytest.mark.parametrize("mapping", ["mlp", "transformer"])
def test_untied_head_is_its_own(mapping):
    model = tiny_model(mapping)
    assert model.gpt.lm_head.weight is model.gpt.transformer.wte.weight
    model.untie_head()
    assert model.gpt.lm_head.weight is not model.gpt.transformer.wte.weight
    before = model.gpt.transformer.wte.weight.detach().clone()
    with torch.no_grad():
        model.gpt.lm_head.weight.add_(1)
    assert torch.equal(model.gpt.transformer.wte.weight, before)
    assert model(torch.randn(2, 16), torch.ones(2, 5, dtype=torch.long)).shape == (2, 5, VOCABULARY)


def test_literal_captioner_belongs_to_nobody_who_trains():
    model = tiny_model()
    own = {name for name, _ in model.named_parameters()}
    model.literal_captioner = tiny_model(seed=3)
    assert {name for name, _ in model.own_parameters()} == own == set(model.train_only(lambda name: True))
    assert not any(parameter.requires_grad for parameter in model.literal_captioner.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"mapping": "cnn"}, "mlp, transformer"), ({"prefix_length": 0}, "at least 1"), ({"prefix_length": 128}, "128")],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ClipCap(tiny_config(**changes))


def test_a_model_is_gone_with_its_last_user():
    """Guards against replaced models whose captured steps keep gigabytes of a GPU until Python looks for circles."""
    model = tiny_model()
    model.generate(torch.randn(2, 16))
    gone, _ = weakref.ref(model), gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
