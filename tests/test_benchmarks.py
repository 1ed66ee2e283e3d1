"""The baselines compute what they claim, and the one command measures everything it reports."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import STOP, tiny_model
from torch import nn

from benchmarks import published, run, targets
from benchmarks.alternative import Alternative
from benchmarks.machine import Limits, Work
from benchmarks.results import Results, write
from benchmarks.setting import noise_photo
from benchmarks.timing import Contender, Measurement, alternate, share_of_products
from clipcap.decoding.options import Decoding
from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap

CPU = torch.device("cpu")
LIMITS = Limits({torch.float32: 1e9, torch.bfloat16: 2e9}, 1e9)


@pytest.fixture(scope="module")
def model() -> ClipCap:
    return tiny_model()


@pytest.fixture(scope="module")
def embeddings() -> torch.Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(0))


def baseline(model: ClipCap) -> published.PublishedClipCap:
    return published.PublishedClipCap.of(model.state_dict(), model.gpt, nn.Identity(), nn.Identity())


@pytest.mark.parametrize("stop", [STOP, -1])
def test_published_loop_agrees_with_ours(model: ClipCap, embeddings: torch.Tensor, stop: int) -> None:
    """Guards against a baseline that is slow or fast because it does something else."""
    loop = baseline(model)
    greedy = model.generate(embeddings, Decoding(max_tokens=20, stop_token=stop))
    beams = model.generate(embeddings, Decoding(method="beam", max_tokens=20, stop_token=stop, return_all=True))
    with torch.no_grad():
        for row, prefix in enumerate(loop.prefix(embeddings).split(1)):
            assert published.greedy(loop.gpt, prefix, 20, stop) == greedy[row]
            assert published.beam_search(loop.gpt, prefix, 20, stop) == beams[row]


def test_published_loop_equals_the_published_code(shared: Path) -> None:
    """Guards against a baseline that is not the published algorithm: captions, loss and 20 training steps."""
    figures = torch.load(shared / "golden" / "mlp_a.pt", weights_only=True)
    config, weights = figures["config"], figures["state_dict"]
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = {"vocab_size": config["vocab"], "n_positions": 128, "n_embd": config["dim"]}
    gpt2 |= {"n_layer": config["layers"], "n_head": config["heads"], "bos_token_id": None, "eos_token_id": None}
    gpt = GPT2LMHeadModel(GPT2Config(**gpt2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)).eval()
    gpt.load_state_dict({name[4:]: tensor for name, tensor in weights.items() if name.startswith("gpt.")}, strict=False)
    loop = published.PublishedClipCap.of(weights, gpt, nn.Identity(), nn.Identity())
    with torch.no_grad():
        for row, prefix in enumerate(loop.prefix(figures["clip_embedding"]).split(1)):
            assert published.greedy(gpt, prefix, config["gen"], config["stop"]) == figures["greedy"][row]
            assert published.beam_search(gpt, prefix, config["gen"], config["stop"]) == figures["beam5"][row]
        loss = published.training_loss(loop, figures["clip_embedding"], figures["tokens"])
        assert loss.item() == pytest.approx(float(figures["loss"]), abs=1e-4)
    optimizer = torch.optim.AdamW(loop.parameters(), lr=config["lr"], weight_decay=0)
    for step, expected in enumerate(figures["train_loss"]):
        optimizer.param_groups[0]["lr"] = config["lr"] * min(step / 4, (20 - step) / 16)
        batch = figures["clip_embedding"][step % 2 :: 2], figures["tokens"][step % 2 :: 2]
        with torch.no_grad():
            assert published.training_loss(loop, *batch).item() == pytest.approx(float(expected), abs=1e-3)
        published.step_from_embeddings(loop, optimizer, *batch)


def test_alternative_agrees_with_ours(model: ClipCap, embeddings: torch.Tensor) -> None:
    """Guards against comparing with a pipeline that captions differently."""
    pipeline = Alternative(nn.Identity(), nn.Identity(), model.clip_project, model.gpt)
    ours = model.generate(embeddings, Decoding(max_tokens=20, stop_token=-1))
    assert pipeline.generate(embeddings, "greedy", 20, None).tolist() == ours
    stopped = pipeline.generate(embeddings, "greedy", 20, STOP).tolist()
    for ids, theirs in zip(model.generate(embeddings, Decoding(max_tokens=20)), stopped, strict=True):
        assert theirs[: len(ids)] == ids and not any(theirs[len(ids) :])


def test_contenders_take_turns() -> None:
    """Guards against measuring one contender while the machine is busy and the other while it is idle."""
    turns = []
    contenders = [Contender(name, lambda count, name=name: turns.append((name, count)), 4) for name in "ab"]
    contenders[0].work = Work(2e6)
    found = alternate("group", "title", "images/s", contenders, 3, CPU)
    assert [name for name, _ in turns] == [*"ab", *"ab", *"ba", *"ab", "a"]
    assert [count for _, count in turns] == [1, 1, *[4] * 7]  # a warm-up, then the rounds, then the profile of one
    assert [len(rates) for rates in found.rates.values()] == [3, 3]
    assert found.work == {"a": Work(2e6)} and found.products.keys() == {"a"}


def test_the_share_of_products_is_that_of_the_time() -> None:
    """Guards against a reason for a missed target that was not measured."""
    a = torch.randn(400, 400)
    assert share_of_products(Contender("sums", lambda count: a.sum(), 4)) == 0
    assert 0 < share_of_products(Contender("products", lambda count: [torch.mm(a, a) for _ in range(count)], 9)) <= 1


def test_ratio_is_the_median_of_the_rounds() -> None:
    """Guards against a ratio of medians, which mixes rounds."""
    found = Measurement("", "", "images/s", {"ours": [10, 20, 90], "published": [1, 1, 30]}, {})
    assert found.ratio("ours", "published") == 10
    assert found.rate("ours") == 20


def test_a_missed_target_says_so_and_why(tmp_path: Path) -> None:
    """Guards against a table that hides what was not reached, or that shows what was not measured."""
    measurement = Measurement("Captioning, end to end", "folder", "images/s", {}, {}, {"ours": Work(2e9 / 27)})
    measurement.rates = {"ours": [18.0], "published": [1.5], "alternative": [6.0], "stage: JPEG": [400.0]}
    measurement.items = dict.fromkeys(measurement.rates, 4)
    results = Results("cpu", "tiny", {"CPU": "one"}, LIMITS, 1, False, measurements={"folder": measurement})
    results.predict_memory = {500: 1000 << 20, 10_000: 1010 << 20}
    write(results, tmp_path / "RESULTS.md")
    lines = (tmp_path / "RESULTS.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| folder, greedy, 20 tokens"))
    assert "at least 80x | 12x | **MISSED**" in row
    assert "18x, less than the target; 67% of it reached" in row
    assert any("at least 2.5x | 3x | met" in line for line in lines)
    assert any("at most +5.0% | +1.0% | met" in line for line in lines)
    assert not any("single photo" in line for line in lines)


def test_photos_are_as_large_as_real_ones() -> None:
    """Guards against photos that decode faster than people's: COCO's take half a byte per pixel."""
    import io

    file = io.BytesIO()
    noise_photo(320, 240, seed=1).save(file, "JPEG", quality=90)
    assert 0.3 < len(file.getvalue()) / (320 * 240) < 0.8
    assert (np.asarray(noise_photo(8, 6, seed=0)) == np.asarray(noise_photo(8, 6, seed=0))).all()


def test_one_command_measures_every_target(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Guards against a comparison that no longer runs, and a target that no comparison measures."""
    page = tmp_path / "RESULTS.md"
    timed = [name for name in run.NAMES if "memory" not in name]
    run.main(["--tiny", "--quick", "--rounds", "1", "--output", str(page), "--only", *timed])
    assert capsys.readouterr().out == page.read_text() + "\n"
    measured = json.loads(page.with_suffix(".json").read_text())["measurements"]
    assert {target.comparison for target in targets.targets("cpu")} - {""} <= measured.keys()
    assert "8 of 8 captions identical to the published loop's from the same embeddings" in page.read_text()
    assert all(rate > 0 for found in measured.values() for rates in found["rates"].values() for rate in rates)


def test_a_run_adds_to_what_another_measured(tmp_path: Path) -> None:
    """Guards against a page that mixes machines, or that loses or changes what it held."""
    page = tmp_path / "RESULTS.md"
    command = ["--tiny", "--quick", "--rounds", "1", "--output", str(page), "--only"]
    with pytest.raises(UserError, match="leave out --add"):
        run.main([*command, "mapping_batches", "--add"])
    run.main([*command, "strategies"])
    first = json.loads(page.with_suffix(".json").read_text())
    run.main([*command, "mapping_batches", "--add"])
    both = json.loads(page.with_suffix(".json").read_text())
    assert both["measurements"].items() > first["measurements"].items() and both["runs"] == 2
    assert "2 runs" in page.read_text() and "head-only" in page.read_text() and "mapping, batch 8" in page.read_text()
    page.with_suffix(".json").write_text(json.dumps(both | {"machine": {"CPU": "another"}}))
    with pytest.raises(UserError, match="other machine"):
        run.main([*command, "mapping_batches", "--add"])


def test_memory_is_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    """Guards against a peak that is that of an earlier measurement."""
    from benchmarks import memory
    from benchmarks.setting import TINY, Setting

    setting = Setting(tmp_path, CPU, TINY)
    assert memory.peak("fine-tuning, head-only", setting) > 1 << 26
    few, many = memory.predict_folders(memory.tiny(setting), 9, 18).values()
    assert min(few, many) > 1 << 26


def test_unknown_comparison_lists_the_known_ones() -> None:
    """Guards against a slip that measures nothing."""
    with pytest.raises(UserError, match="folder_greedy"):
        run.main(["--only", "nothing"])
