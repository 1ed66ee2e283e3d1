"""What a wrong step of training changes: the weights that are kept, gradients, the learning rate, the adapters."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_finetuning import train, trained_adapters, world  # noqa: F401
from test_training import at_step, same, tensors_of, trainer

import basic_finetuning
import lora_finetuning
import prompt_finetuning
from clipcap.errors import Interrupted
from clipcap.model.batches import collate
from clipcap.training import trainer as loop
from clipcap.training.arguments import DataArguments, LoopArguments, StartArguments
from clipcap.training.experiment import Experiment
from clipcap.training.loader import in_order
from clipcap.training.losses import validation_loss
from clipcap.training.trainer import Trainer
from clipcap.weights.checkpoint import load_checkpoint
from clipcap.weights.lora import merged, save_adapters
from clipcap.weights.places import Base


def with_losses(run: Trainer, losses: list[float], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the evaluations of a run find these losses; gives the list of the steps whose weights are saved."""
    found, saved = iter(losses), []
    monkeypatch.setattr(loop, "validation_loss", lambda *_: next(found))
    save = run.save

    def save_and_note(model: Any, path: Path) -> None:
        saved.append(run.progress.step)
        save(model, path)

    run.save = save_and_note
    run.look_before = lambda: None  # the evaluation before the first step, which none of these tests is about
    run.journal.plot = lambda: None  # which takes longer than the rest of the run
    return saved


def test_only_weights_with_a_lower_loss_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, evals_per_epoch=4)
    saved = with_losses(run, [3.0, 2.0, 2.5, 2.0, 2.2, 1.5, 1.6, 1.5], monkeypatch)
    run.run()
    assert saved == [3, 6, 18]
    record = load_checkpoint(tmp_path / "weights.pt").record
    assert (record["step"], record["losses"]["validation"]) == (18, 1.5)
    assert run.progress.best == 1.5


@pytest.mark.parametrize("moment", [7, 9])  # a step without an evaluation, and one with a worse loss
def test_a_resumed_run_remembers_the_best_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    first = trainer(tmp_path, evals_per_epoch=4)
    with_losses(first, [3.0, 2.0, 2.5], monkeypatch)
    at_step(first, moment, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        first.run()
    second = trainer(tmp_path, evals_per_epoch=4, resume=True)
    rest = [2.5][moment == 9 :] + [2.9, 2.1, 2.0, 1.9, 1.8]
    saved = with_losses(second, rest, monkeypatch)
    second.run()
    assert saved == [21, 24]


def evaluated(run: Trainer) -> list[int]:
    return [row["step"] for row in run.progress.rows if "val_loss" in row]


@pytest.mark.parametrize(
    ("patience", "losses", "steps"),
    [
        (2, [3.0, 2.0, 2.5, 2.0], [3, 6, 9, 12]),  # as low as the best is no better
        (2, [3.0, 2.0, 2.5, 1.9, 2.0, 1.8, 1.7, 1.6], [3, 6, 9, 12, 15, 18, 21, 24]),  # never two in a row
        (1, [3.0, 2.0, 2.5], [3, 6, 9]),
        (7, [3.0] + [4.0] * 7, [3, 6, 9, 12, 15, 18, 21, 24]),
        (None, [3.0] + [4.0] * 7, [3, 6, 9, 12, 15, 18, 21, 24]),
    ],
)
def test_a_run_ends_when_its_patience_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    patience: int | None,
    losses: list[float],
    steps: list[int],
) -> None:
    """Guards against a count that starts anew with each epoch, or that takes any fall of the loss for a better one."""
    run = trainer(tmp_path, evals_per_epoch=4, patience=patience)
    with_losses(run, losses, monkeypatch)
    run.run()
    assert evaluated(run) == steps and run.progress.best == min(losses)
    assert ("ended after 1 of 2 epochs" in capsys.readouterr().err) == (steps[-1] == 12)


@pytest.mark.parametrize("moment", [2, 6, 8, 12])  # the last: the interruption comes when the patience ends
def test_an_interrupted_run_with_patience_equals_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Guards against a patience that a resumed run begins anew: it would train on, to other weights."""
    losses = {3: 3.0, 6: 2.0, 9: 2.5, 12: 2.1}
    options = {"evals_per_epoch": 4, "patience": 2}
    straight = trainer(tmp_path / "straight", **options)
    with_losses(straight, list(losses.values()), monkeypatch)
    straight.run()
    first = trainer(tmp_path / "broken", **options)
    with_losses(first, list(losses.values()), monkeypatch)
    at_step(first, moment, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        first.run()
    for _ in range(2):  # to resume what has ended changes nothing
        second = trainer(tmp_path / "broken", resume=True, **options)
        with_losses(second, [loss for step, loss in losses.items() if step > moment], monkeypatch)
        second.run()
        moment = 12
        assert evaluated(second) == evaluated(straight) == [3, 6, 9, 12]
        both = [load_checkpoint(tmp_path / name / "weights.pt").state_dict() for name in ("straight", "broken")]
        assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
        states = [torch.load(tmp_path / name / "state/pytorch_model.bin") for name in ("straight", "broken")]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def gradients(run: Trainer, group: list) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradients, before they are clipped, of one step."""
    found: dict[str, torch.Tensor] = {}

    def note(*_: Any) -> None:
        found.update({name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})

    run.accelerator.clip_grad_norm_ = note
    return run.step(group).item(), found


@pytest.mark.parametrize("count", [1, 3])
def test_a_step_moves_by_the_mean_gradient_of_its_batches(tmp_path: Path, count: int) -> None:
    """AdamW hardly notices a gradient that is three times too large; the clipping and the logged loss do."""
    run = trainer(tmp_path, no_fast=True)
    run.model.eval()  # no dropout
    group = [collate([run.train_set[row] for row in range(4 * n, 4 * n + 4)]) for n in range(count)]
    by_hand = sum(run.model.loss(batch) for batch in group) / count
    named = dict(run.model.named_parameters())
    expected = dict(zip(named, torch.autograd.grad(by_hand, list(named.values())), strict=True))
    loss, found = gradients(run, group)
    assert loss == pytest.approx(by_hand.item(), abs=1e-6)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


def test_gradients_do_not_outlive_their_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, no_fast=True, learning_rate=1e-12)
    run.model.eval()
    group = [collate([run.train_set[row] for row in range(4)])]
    first, second = gradients(run, group)[1], gradients(run, group)[1]
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_gradients_are_scaled_down_to_the_largest_norm(tmp_path: Path) -> None:
    run = trainer(tmp_path, clip_norm=0.01)
    norms = []
    move = run.optimizer.step

    def note() -> None:
        norms.append(torch.stack([p.grad.norm() for p in run.model.parameters() if p.grad is not None]).norm().item())
        move()

    run.optimizer.step = note
    run.step([collate([run.train_set[row] for row in range(4)])])
    assert norms == [pytest.approx(0.01, rel=1e-3)]


@pytest.mark.parametrize(("warmup", "rising"), [(0.5, 12), (0.25, 6), (0.0, 0)])
def test_the_learning_rate_warms_up_and_falls_to_nothing(tmp_path: Path, warmup: float, rising: int) -> None:
    run = trainer(tmp_path, warmup=warmup, learning_rate=1e-3, evals_per_epoch=1)
    rates = []
    move = run.optimizer.step

    def note() -> None:
        rates.append(run.optimizer.param_groups[0]["lr"])
        move()

    run.optimizer.step = note
    run.run()
    up = [1e-3 * step / rising for step in range(rising)]
    down = [1e-3 * (24 - step) / (24 - rising) for step in range(rising, 24)]
    assert rates == pytest.approx(up + down)


def test_matrices_alone_decay(tmp_path: Path) -> None:
    """A run whose gradients are nothing: what still moves, decays."""
    run = trainer(tmp_path, weight_decay=0.5, learning_rate=0.1, warmup=0.0)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}

    def forget(*_: Any) -> None:
        for parameter in run.model.parameters():
            parameter.grad.zero_()

    run.accelerator.clip_grad_norm_ = forget
    run.step([collate([run.train_set[row] for row in range(4)])])
    for name, parameter in run.model.named_parameters():
        shrunk = before[name] * (0.95 if parameter.ndim >= 2 else 1)
        assert torch.allclose(parameter, shrunk, atol=1e-6), name


def test_the_loss_is_that_of_every_caption_token_and_no_other(tmp_path: Path) -> None:
    """By hand, row by row: prefix, prompt and caption without padding; each token predicted from those before it."""
    run = trainer(tmp_path)
    model, data = run.model.eval(), run.validation
    data.prompts = [[7, 8, 9][: row % 4] for row in range(len(data.captions))]
    losses = []
    with torch.no_grad():
        for row in range(len(data)):
            embedding, prompt, caption = data[row]
            tokens = torch.tensor([*prompt, *caption])
            prefix = model.clip_project(torch.from_numpy(embedding)[None])
            inputs = torch.cat((prefix, model.gpt.transformer.wte(tokens)[None]), 1)
            logits = model.gpt(inputs_embeds=inputs).logits[0]
            behind = model.config.prefix_length + len(prompt)
            for number, token in enumerate(caption):
                losses.append(F.cross_entropy(logits[behind + number - 1], torch.tensor(token)).item())
    for batch_size in (1, 3, 8):
        assert validation_loss(model, data, batch_size) == pytest.approx(np.mean(losses), abs=1e-5)


def test_an_evaluation_sees_every_row_without_dropout_and_leaves_no_trace(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.model.train()
    state = torch.get_rng_state()
    first, second = (validation_loss(run.model, run.validation, 3) for _ in range(2))
    assert first == second and run.model.training and torch.equal(torch.get_rng_state(), state)
    assert sorted(row for batch in in_order(run.validation, 3) for row in batch) == list(range(8))


@pytest.mark.parametrize(("batch_size", "accumulate"), [(5, 1), (5, 3), (48, 2)])
def test_every_caption_is_learnt_once_in_each_epoch(tmp_path: Path, batch_size: int, accumulate: int) -> None:
    """Guards against a last batch or a last group that is too small, and is dropped."""
    run = trainer(tmp_path, batch_size=batch_size, accumulate=accumulate, epochs=2, evals_per_epoch=1)
    learnt: list[list[float]] = []
    move = run.step
    run.step = lambda group: learnt.extend(b.clip_embedding[:, 0].tolist() for b in group) or move(group)
    run.run()
    seen = sorted(number for batch in learnt for number in batch)
    assert seen == sorted(np.repeat(run.train_set.embeddings[:, 0], 2).tolist())
    half = len(learnt) // 2
    assert sorted(sum(learnt[:half], [])) == sorted(run.train_set.embeddings[:, 0].tolist())
    assert batch_size == 48 or learnt[:half] != learnt[half:]  # in another order each time


@pytest.mark.parametrize("accumulate", [1, 3])
def test_resuming_within_an_epoch_skips_what_was_learnt(tmp_path: Path, accumulate: int) -> None:
    trainer(tmp_path / "straight", accumulate=accumulate).run()
    first = trainer(tmp_path / "broken", accumulate=accumulate)
    at_step(first, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        first.run()
    assert caught.value.number == signal.SIGTERM
    trainer(tmp_path / "broken", accumulate=accumulate, resume=True).run()
    assert same(*(tensors_of(tmp_path / name / "weights.pt") for name in ("straight", "broken")))


def test_the_logged_loss_is_the_mean_since_the_last_row(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=1)
    losses = []
    move = run.step
    run.step = lambda group: losses.append(move(group)) or losses[-1]
    run.run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {row["step"]: row["train_loss"] for row in rows if "train_loss" in row}
    values = [loss.item() for loss in losses]
    parts = {6: values[:6], 10: values[6:10], 12: values[10:]}
    assert logged == {step: pytest.approx(np.mean(part), abs=1e-5) for step, part in parts.items()}


def test_only_the_first_captions_are_learnt_where_a_limit_is_given(world: Path, tmp_path: Path) -> None:  # noqa: F811
    output = train(basic_finetuning, world, tmp_path, "--limit-train", "16")
    record = load_checkpoint(output / "base_weights.pt").record
    assert (record["data"]["rows"], record["step"]) == (16, 2)


def test_captions_are_cut_to_as_many_tokens_as_asked_for(world: Path, tmp_path: Path) -> None:  # noqa: F811
    experiment = Experiment.prepare(
        "base",
        DataArguments(data=str(world / "data"), max_tokens=4),
        StartArguments(init=str(world / "literal.pt")),
        LoopArguments(output_dir=str(tmp_path)),
    )
    assert [{len(caption) for caption in part.captions} for part in experiment.datasets()] == [{4}, {4}]


def test_the_seed_decides_the_order_and_what_is_dropped_out(tmp_path: Path) -> None:
    orders, losses = [], []
    for number, seed in enumerate((1, 1, 2)):
        run = trainer(tmp_path / str(number), seed=seed, batch_size=48, epochs=1, evals_per_epoch=1)
        orders.append(list(run.sampler))
        run.sampler.seed = 0  # so that nothing but what is dropped out differs
        run.run()
        losses.append([row["train_loss"] for row in run.progress.rows if "train_loss" in row])
    assert orders[0] == orders[1] != orders[2]
    assert losses[0] == losses[1] != losses[2]


def test_the_seed_decides_how_a_fresh_mapping_network_begins(world: Path, tmp_path: Path) -> None:  # noqa: F811
    data = DataArguments(data=str(world / "data"))
    begun = [
        Experiment.prepare(
            "base",
            data,
            StartArguments(language_model=str(world / "gpt2")),
            LoopArguments(output_dir=str(tmp_path), seed=seed),
        ).model.clip_project.state_dict()
        for seed in (1, 1, 2)
    ]
    assert same(begun[0], begun[1]) and not same(begun[0], begun[2])


def test_prompted_weights_give_their_weights_alone_to_the_next_run(world: Path, tmp_path: Path) -> None:  # noqa: F811
    """Guards against weights that ask for a prompt with which they were not trained."""
    prompted = train(prompt_finetuning, world, tmp_path / "prompted") / "prompted_weights.pt"
    output = train(basic_finetuning, world, tmp_path / "base", "--init", str(prompted))
    model = load_checkpoint(output / "base_weights.pt")
    assert model.config.prompt is None and model.literal_captioner is None


# LoRA


@pytest.mark.parametrize("alpha", [1.0, 5.0, 48.0])
def test_adapters_keep_their_alpha(world: Path, tmp_path: Path, alpha: float) -> None:  # noqa: F811
    """Guards against the published adapters' alpha of 16 for all: the weights that load are not those that trained."""
    model, settings = trained_adapters(world, alpha, targets=["c_attn"])
    save_adapters(model, tmp_path / "lora.pt", Base.of(str(world / "literal.pt")), settings)
    before = load_checkpoint(world / "literal.pt").state_dict()
    layer = "gpt.transformer.h.1.attn.c_attn"
    adapter = {side: model.get_parameter(f"{layer}.lora_{side}.default.weight") for side in "AB"}
    expected = before[f"{layer}.weight"] + (adapter["B"] @ adapter["A"]).t() * alpha / 3
    for loaded in (load_checkpoint(tmp_path / "lora.pt", base=str(world / "literal.pt")), merged(model)):
        assert torch.allclose(loaded.state_dict()[f"{layer}.weight"], expected, atol=1e-5)


def test_adapters_drop_out_in_training_alone(world: Path) -> None:  # noqa: F811
    model, _ = trained_adapters(world, dropout=0.5, targets=["c_attn"])
    model.gpt.eval()
    embedding, tokens = torch.randn(2, 16), torch.tensor([[4, 5, 6]] * 2)
    assert torch.equal(model(embedding, tokens), model(embedding, tokens))
    for module in model.modules():
        if "lora_dropout" in dict(module.named_children()):
            module.train()
    assert not torch.equal(model(embedding, tokens), model(embedding, tokens))


def test_every_option_of_the_adapters_reaches_the_training(world: Path, tmp_path: Path) -> None:  # noqa: F811
    """Guards against an option that is read and not used: the same weights would come out."""
    base = str(world / "literal.pt")
    plain = train(lora_finetuning, world, tmp_path / "plain")
    start = load_checkpoint(plain / "lora_4_weights.pt", base=base).state_dict()
    for number, options in enumerate((["--alpha", "4"], ["--dropout", "0.9"], ["--target", "c_fc"])):
        output = train(lora_finetuning, world, tmp_path / str(number), *options)
        assert not same(start, load_checkpoint(output / "lora_4_weights.pt", base=base).state_dict()), options
