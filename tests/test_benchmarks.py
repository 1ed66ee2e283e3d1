"""The baselines compute what they claim, and the one command measures everything it reports."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import STOP, tiny_model
from torch import nn
from torchvision.transforms.functional import to_tensor

import predict
from benchmarks import alternative, captioning, engines, fine_tuning, machine, page, published, results, run
from benchmarks.alternative import Alternative, Photos
from benchmarks.machine import Limits, Work
from benchmarks.plan import Plan
from benchmarks.results import Results
from benchmarks.setting import TINY, Setting, noise_photo
from benchmarks.timing import Contender, Measurement, alternate, share_of_products
from clipcap.decoding.options import Decoding
from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap

CPU = torch.device("cpu")
LIMITS = Limits({torch.float32: 1e9, torch.bfloat16: 2e9, torch.int8: 4e9}, 1e9)


# In place of predict.py: what it was given, and 32 MB a photo.
PREDICT = """
import json, os, sys, time
with open("commands.txt", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
held = b"x" * (32 << 20) * len(os.listdir(sys.argv[3]))
time.sleep(0.3)
"""


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


def test_the_pipeline_is_given_what_a_careful_user_would_give_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a peer that decodes whole JPEGs, which is slower, or loses the order of its photos."""
    files = []
    for number in range(5):
        files.append(tmp_path / f"{number}.jpg")
        noise_photo(320, 240, seed=number).save(files[-1])
    photos = Photos(files, lambda image: torch.tensor(image.size), side=60)
    assert photos[0].tolist() == [80, 60]
    clip = SimpleNamespace(visual=SimpleNamespace(image_size=(16, 16)), encode_image=lambda pixels: pixels.mean((2, 3)))
    pipeline = Alternative(clip, to_tensor, nn.Identity(), tiny_model().gpt)
    batches = []
    monkeypatch.setattr(clip, "encode_image", lambda pixels: (batches.append(len(pixels)), pixels.mean((2, 3)))[1])
    whole = pipeline.embed(files)
    assert batches == [3, 2], "one of the two workers had nothing to read"
    singly = torch.cat([pipeline.embed([file]) for file in files])
    assert torch.equal(whole, singly) and len(whole.unique(dim=0)) == 5


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_ctranslate2_decodes_the_same_model(tmp_path: Path, precision: str) -> None:
    """Guards against a yardstick that decodes another model or prompts, or whose threads slow PyTorch's down."""
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    setting = Setting(tmp_path, CPU, TINY)
    gpt = setting.model().gpt
    prompts = torch.randint(200, (6, 5), generator=torch.Generator().manual_seed(0))
    engine = engines.ctranslate2(gpt, setting.tokenizer, tmp_path, precision)
    assert engine.process.submit(os.getpid).result() != os.getpid()
    found = engine.generate(prompts.tolist(), 8)
    mask = torch.ones_like(prompts)
    expected = gpt.generate(prompts, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)[:, 5:]
    equal = sum(a == b for a, b in zip(found, expected.tolist(), strict=True))
    assert equal == 6 if precision == "float32" else equal >= 4


def test_llama_cpp_captions_from_the_same_prefix(tmp_path: Path) -> None:
    """Guards against a peer that reads other embeddings, or the rows of a batch as one text."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not installed")
    sizes = replace(TINY, gpt2=TINY.gpt2 | {"n_embd": 64})  # Q8_0 has blocks of 32 numbers
    gpt = Setting(tmp_path, CPU, sizes).model().gpt
    prefix = torch.randn(4, 5, 64, generator=torch.Generator().manual_seed(0))
    found = engines.llama(gpt, tmp_path / "gpt2.gguf", rows=4, length=13).generate(prefix.numpy(), 8)
    expected = gpt.generate(inputs_embeds=prefix, max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 3


@pytest.mark.parametrize("engine", [engines.ctranslate2, engines.llama])
def test_a_peer_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Callable):
    """Guards against a comparison that fails, or leaves a peer out in silence."""
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with captioning.absent("it") as notes:
        engine(None, None, tmp_path, 1)
    assert len(notes) == 1 and notes[0].startswith("it was not measured: ")


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
    """Guards against an explanation of the page that was not measured."""
    a = torch.randn(400, 400)
    assert share_of_products(Contender("sums", lambda count: a.sum(), 4)) == 0
    assert 0 < share_of_products(Contender("products", lambda count: [torch.mm(a, a) for _ in range(count)], 9)) <= 1


def test_ratio_is_the_median_of_the_rounds() -> None:
    """Guards against a ratio of medians, which mixes rounds."""
    found = Measurement("", "", "images/s", {"ours": [10, 20, 90], "published": [1, 1, 30]}, {})
    assert found.ratio("ours", "published") == 10
    assert found.rate("ours") == 20


def results_of_a_folder(**given: object) -> Results:
    """A folder captioned at 18 images per second, where the machine allows 27, and at 30 in int8."""
    found = Measurement("Captioning, end to end", "folder", "images/s", {}, {}, {"ours": Work(2e9 / 27)}, {"ours": 0.8})
    found.work["ours, int8"] = Work(1e9 / 60, dtype=torch.int8)
    found.rates = {"ours": [18.0], "ours, int8": [30.0], "published": [1.5], "alternative": [6.0]}
    found.rates |= {"llama.cpp": [9.0], "stage: JPEG": [400.0]}
    found.notes = ["CTranslate2 was not measured: there is none"]
    found.items = dict.fromkeys(found.rates, 4)
    values = {"device": "cpu", "models": "tiny", "machine": {"CPU": "one"}, "limits": LIMITS, "rounds": 1}
    values |= {"quick": False, "batches": {"sequences decoded": 256}, "measurements": {"folder": found}}
    return Results(**values | given)


def task_of(line: str) -> str:
    """What a row of the page is about, without its unit."""
    return cells(line)[0].rpartition(", ")[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_begins_with_what_a_user_gains(tmp_path: Path) -> None:
    """Guards against a page whose first figures compare with nothing, or leave out the strongest peer or int8."""
    page.write(results_of_a_folder(), tmp_path / "RESULTS.md")
    lines = (tmp_path / "RESULTS.md").read_text().splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert cells(tables[0]) == ["", "precision", "images/s", "ours, against it", "ours, int8, against it"]
    assert [cells(line) for line in tables[2:7]] == [
        ["**ours, int8**", "int8", "30.0", "0.600x", "–"],
        ["**ours**", "bf16", "18.0", "–", "1.67x"],
        ["llama.cpp, batch 256", "int8 (Q8_0), CLIP as ours", "9.00", "2.00x", "3.33x"],
        ["open_clip + `generate`, batch 256", "bf16", "6.00", "3.00x", "5.00x"],
        ["published loop", "fp32", "1.50", "12.0x", "20.0x"],
    ]
    assert "- CTranslate2 was not measured: there is none." in lines


def test_the_page_says_how_near_the_machine_s_limit_and_how_much_memory(tmp_path: Path) -> None:
    """Guards against a page that shows what was not measured, and one that judges its own figures."""
    page.write(results_of_a_folder(predict_memory={500: 1000 << 20, 10_000: 1010 << 20}), tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
    task = "captioning a folder, greedy, 20 tokens, images/s"
    assert [task, "bf16", "18.0", "27.0", "67%", "80%"] in rows and [task, "int8", "30.0", "240", "12%", "–"] in rows
    assert ["JPEG", "2.50"] in rows and ["end to end", "55.6"] in rows  # ms per image
    assert ["10,000 photos", "1,010"] in rows and "From 500 to 10,000 photos the peak changes by +1.0%" in text
    assert not any("one photo at a time" in row[0] for row in rows)
    assert "MISSED" not in text and "target" not in text


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5217, "0.522"), (9.999, "10.0"), (21.86, "21.9"), (99.96, "100"), (1628.4, "1,630")]
)
def test_figures_have_three_digits_and_no_exponent(value: float, shown: str) -> None:
    """Guards against 1.63e+03 images per second."""
    assert page.figure(value) == shown


def test_the_committed_page_is_what_the_command_writes_from_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Guards against figures on the page that nobody measured, and a page that lags behind the code that writes it."""
    for name in ("RESULTS.json", "RESULTS.md"):
        (tmp_path / name).write_bytes((run.HERE / name).read_bytes())
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    (tmp_path / "RESULTS.md").unlink()
    run.main(["--page", "--output", str(tmp_path / "RESULTS.md")])
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8") == text
    assert capsys.readouterr().out == text + "\n"
    assert (tmp_path / "RESULTS.json").read_bytes() == (run.HERE / "RESULTS.json").read_bytes()


def test_results_are_read_as_they_were_written() -> None:
    """Guards against a figure that is lost when the page is written again or a run is added."""
    file = run.HERE / "RESULTS.json"
    assert results.read(file).as_json() == file.read_text(encoding="utf-8")


def test_a_page_needs_results_and_measures_nothing(tmp_path: Path) -> None:
    """Guards against a traceback, and against options that do nothing."""
    output = ["--output", str(tmp_path / "RESULTS.md")]
    with pytest.raises(UserError, match="leave out --page"):
        run.main(["--page", *output])
    for place in (".", "/", str(tmp_path / "RESULTS.json")):
        with pytest.raises(UserError, match=r"names the page, .*: end it in \.md"):
            run.main(["--page", "--output", place])
    for options in (["--add"], ["--only", "embedding"]):
        with pytest.raises(UserError, match=f"leave out {options[0]}"):
            run.main(["--page", *options, *output])
    for broken in ("{", "[]", '{"limits": {}}'):
        (tmp_path / "RESULTS.json").write_text(broken)
        with pytest.raises(UserError, match="measure again"):
            run.main(["--page", *output])


@pytest.mark.parametrize(("rate", "sides"), [(1e9, [256]), (1e12, [256, 512, 1024])])
def test_a_slow_product_is_not_measured_large(monkeypatch: pytest.MonkeyPatch, rate: float, sides: list[int]) -> None:
    """Guards against minutes of waiting, after every comparison, on a CPU that only emulates bf16."""
    timed = []

    def best(run: partial, *_: object) -> float:
        timed.append(len(run.args[0]))
        return 2 * timed[-1] ** 3 / rate

    monkeypatch.setattr(machine, "_best", best)
    assert machine._product_rate(torch.bfloat16, 1024, CPU, patience=0.25) == pytest.approx(rate)
    assert timed == sides


def test_photos_are_as_large_as_real_ones() -> None:
    """Guards against photos that decode faster than people's: COCO's take half a byte per pixel."""
    import io

    file = io.BytesIO()
    noise_photo(320, 240, seed=1).save(file, "JPEG", quality=90)
    assert 0.3 < len(file.getvalue()) / (320 * 240) < 0.8
    assert (np.asarray(noise_photo(8, 6, seed=0)) == np.asarray(noise_photo(8, 6, seed=0))).all()


def test_one_command_measures_everything_that_the_page_names(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a comparison that no longer runs, and a row of the page that no comparison measures."""
    monkeypatch.setattr("benchmarks.machine.measure_limits", cache(machine.measure_limits))
    # Worker processes, which take seconds to start, have tests of their own.
    monkeypatch.setattr("clipcap.clip.workers.FEW", 999)
    monkeypatch.setattr("benchmarks.alternative.WORKERS", 1)
    output = tmp_path / "RESULTS.md"
    timed = [name for name in run.NAMES if "memory" not in name]
    run.main(["--tiny", "--quick", "--rounds", "1", "--output", str(output), "--only", *timed])
    assert capsys.readouterr().out == output.read_text() + "\n"
    measured = json.loads(output.with_suffix(".json").read_text())["measurements"]
    decoded = {f"decoding {method}, batch 32" for method in ("greedy", "nucleus", "beam")}
    assert {*page.COMPARED, page.STRATEGIES, *decoded} <= measured.keys()
    assert set(page.COMPARED.values()) <= {task_of(line) for line in output.read_text().splitlines()}
    assert {*page.ENGINES, page.INT8, "ours", "alternative"} <= measured["decoding greedy, batch 32"]["rates"].keys()
    assert measured["folder"]["rates"].keys() >= {"ours", "ours, int8", "alternative", "alternative, batch 32"}
    assert "8 of 8 captions identical to the published loop's from the same embeddings" in output.read_text()
    assert all(rate > 0 for found in measured.values() for rates in found["rates"].values() for rate in rates)


def test_a_single_photo_is_captioned_by_all_contenders_before_they_open_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a peer that starts worker processes for a single photo, or embeds eight of them in a batch."""
    batches, workers = [], []
    embed, loader = Alternative.embed, alternative.DataLoader
    monkeypatch.setattr(
        Alternative, "embed", lambda self, photos, *rest: (batches.append(len(photos)), embed(self, photos, *rest))[1]
    )
    monkeypatch.setattr(
        alternative, "DataLoader", lambda *given, num_workers: (workers.append(num_workers), loader(*given))[1]
    )
    (found,) = captioning.single_photo(Setting(tmp_path, CPU, TINY), Plan(1, quick=True, device=CPU))
    assert found.items["ours"] == found.items["alternative"] == 8
    assert set(batches) == {1} and set(workers) == {0} and len(batches) == 1 + 8


def test_a_run_adds_to_what_another_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a page that mixes machines, or that loses or changes what it held."""
    monkeypatch.setattr("benchmarks.machine.measure_limits", cache(machine.measure_limits))
    output = tmp_path / "RESULTS.md"
    command = ["--tiny", "--quick", "--rounds", "1", "--output", str(output), "--only"]
    with pytest.raises(UserError, match="leave out --add"):
        run.main([*command, "mapping_batches", "--add"])
    run.main([*command, "strategies"])
    first = json.loads(output.with_suffix(".json").read_text())
    run.main([*command, "mapping_batches", "--add"])
    both = json.loads(output.with_suffix(".json").read_text())
    assert both["measurements"].items() > first["measurements"].items() and both["runs"] == 2
    text = output.read_text()
    assert "2 runs" in text and "head-only" in text and "mapping, batch 8" in text
    output.with_suffix(".json").write_text(json.dumps(both | {"machine": {"CPU": "another"}}))
    with pytest.raises(UserError, match="other machine"):
        run.main([*command, "mapping_batches", "--add"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_turn_of_fine_tuning_computes_its_batches_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Guards against validation, which took most of a turn, and the longest captions that come first on a GPU."""
    setting = Setting(tmp_path, CPU, TINY)
    model, seen = setting.model(), []
    setting.model = lambda *_: model
    turn = fine_tuning.ours(setting, Plan(1, quick=True, device=CPU), "full", fine_tuning.full)
    model.gpt.transformer.h[0].register_forward_hook(lambda *_: seen.append(1))
    monkeypatch.setattr(Accelerator, "device", torch.device(device))
    monkeypatch.setattr("clipcap.training.trainer.try_longest", lambda *_: seen.append(0))
    turn.run(turn.items)
    assert len(seen) == 4 and turn.items == 4 * fine_tuning.BATCH


def test_memory_is_measured_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a peak that is that of an earlier measurement."""
    from benchmarks import memory

    setting = Setting(tmp_path, CPU, TINY)
    assert memory.peak("fine-tuning, head-only", setting) > 1 << 26
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    on_cuda = memory.tasks(Setting(tmp_path, torch.device("cuda"), TINY))
    assert not any("int8" in task for task in on_cuda)  # which would end the whole run
    (tmp_path / "predict.py").write_text(PREDICT)
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    few, many = memory.predict_folders(memory.tiny(setting), 3, 6).values()
    assert 96 << 20 < few < 192 << 20 < many < 384 << 20
    *_, command = (tmp_path / "commands.txt").read_text().splitlines()
    assert predict.main(json.loads(command)) == 0  # the real one takes the options that it is given


def test_unknown_comparison_lists_the_known_ones() -> None:
    """Guards against a slip that measures nothing."""
    with pytest.raises(UserError, match="folder_greedy"):
        run.main(["--only", "nothing"])
