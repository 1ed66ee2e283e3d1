"""The four scripts as a user drives them, on a tiny world: what each trains, what it writes, what it refuses."""

import gc
import json
import os
import pickle
import shutil
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import byte_tokenizer, tiny_config

import basic_finetuning
import frozen_finetuning
import load_data
import lora_finetuning
import prompt_finetuning
from clipcap.data.store import EmbeddingStore
from clipcap.errors import UserError
from clipcap.model.batches import collate
from clipcap.model.clipcap import ClipCap
from clipcap.model.prompts import LITERAL, caption_embeddings
from clipcap.training.trainer import Trainer
from clipcap.weights.card import model_card
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint
from clipcap.weights.format import read, sha256
from clipcap.weights.lora import inject

FAST = ["--epochs", "1", "--batch-size", "8", "--evals-per-epoch", "1", "--device", "cpu", "--learning-rate", "1e-3"]
FAST += ["--min-steps", "0"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A dataset of 60 captions, weights to start from, and a GPT-2 in a folder."""
    folder = tmp_path_factory.mktemp("world")
    rows = [{"image_id": n, "caption": f"caption {n % 7} #{'fun' * (n % 3)}", "clip_embedding": n} for n in range(60)]
    embeddings = torch.from_numpy(np.random.default_rng(0).normal(size=(60, 16)).astype(np.float16))
    (folder / "rows.pkl").write_bytes(pickle.dumps({"clip_embedding": embeddings, "captions": rows}))
    clip = ["--clip", "tiny", "--val-fraction", "0.2", "--output", str(folder / "data")]
    load_data.main(["--source", "clipcap", str(folder / "rows.pkl"), *clip])
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = tiny_config(clip_model="tiny", tokenizer=tokenizer.to_str(), stop_token=tokenizer.token_to_id("."))
    config.gpt2 |= {"vocab_size": tokenizer.get_vocab_size(), "n_positions": 512}
    model = ClipCap(config)
    save_checkpoint(model, folder / "literal.pt")
    model.gpt.save_pretrained(folder / "gpt2")
    tokenizer.save(str(folder / "gpt2" / "tokenizer.json"))
    return folder


def train(script, world: Path, output: Path, *options: str) -> Path:
    start = [] if "--language-model" in options else ["--init", str(world / "literal.pt")]
    script.main(["--data", str(world / "data"), *start, "--output-dir", str(output), *FAST, *options])
    return output


@pytest.fixture(scope="module")
def prompted(world, tmp_path_factory) -> Path:
    """Prompted weights, whose literal captioner is `literal.pt`."""
    return train(prompt_finetuning, world, tmp_path_factory.mktemp("prompted")) / "prompted_weights.pt"


def changed(before: ClipCap, after: ClipCap) -> set[str]:
    """Names of the tensors that differ; a tied head counts as the embedding that it is."""
    old, new = before.state_dict(), after.state_dict()
    return {name for name in new if not torch.equal(old[name], new[name])}


def test_full_fine_tuning_trains_everything(world, tmp_path, capsys):
    output = train(basic_finetuning, world, tmp_path)
    assert capsys.readouterr().out.strip() == str(output / "base_weights.pt")
    before, after = load_checkpoint(world / "literal.pt"), load_checkpoint(output / "base_weights.pt")
    assert changed(before, after) == set(before.state_dict())
    assert after.config.stop_token == byte_tokenizer().token_to_id("<|endoftext|>")
    record = after.record
    assert record["strategy"] == "full" and record["arguments"]["batch_size"] == 8
    assert record["data"]["identity"] == json.loads((world / "data" / "dataset.json").read_text())["identity"]
    assert {path.name for path in output.iterdir()} >= {"loss.png", "metrics.jsonl", "samples.jsonl", "state"}


@pytest.mark.parametrize("mapping", ["mlp", "transformer"])
def test_the_mapping_network_alone_from_plain_gpt2(world, tmp_path, mapping):
    options = ["--language-model", str(world / "gpt2"), "--mapping", mapping, "--prefix-length", "5"]
    options += ["--clip-length", "3", "--mapping-layers", "2"] if mapping == "transformer" else []
    options += ["--freeze-language-model"]
    output = train(basic_finetuning, world, tmp_path, *options)
    model = load_checkpoint(output / "base_weights.pt")
    literal = load_checkpoint(world / "literal.pt")
    gpt = {name for name in literal.state_dict() if name.startswith("gpt.")}
    assert all(torch.equal(model.state_dict()[name], literal.state_dict()[name]) for name in gpt)
    assert (model.config.mapping, model.config.prefix_length, model.config.clip_dim) == (mapping, 5, 16)
    assert mapping == "mlp" or (model.config.clip_length, len(model.clip_project.transformer.layers)) == (3, 2)
    assert model.record["trained_parameters"] == sum(p.numel() for p in model.clip_project.parameters())


def test_a_resumed_script_ends_with_the_same_weights(world, tmp_path, monkeypatch):
    """And without a second training of what was trained: a run from the beginning has the same weights too."""
    options = ["--language-model", str(world / "gpt2"), "--epochs", "2"]
    steps, step, evaluate = [], Trainer.step, Trainer.evaluate
    monkeypatch.setattr(Trainer, "step", lambda self, group: steps.append(len(group)) or step(self, group))
    whole = train(basic_finetuning, world, tmp_path / "whole", *options)
    every = len(steps)

    def killed(self: Trainer) -> None:
        evaluate(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "evaluate", killed)
        train(basic_finetuning, world, tmp_path / "again", *options)
    again = train(basic_finetuning, world, tmp_path / "again", *options, "--resume")
    assert len(steps) == 2 * every
    assert not changed(*(load_checkpoint(folder / "base_weights.pt") for folder in (whole, again)))


def test_a_small_data_set_is_repeated_within_each_epoch(world, tmp_path):
    output = train(basic_finetuning, world, tmp_path, "--limit-train", "16", "--min-steps", "20")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert (rows[-1]["step"], rows[-1]["epoch"]) == (20, 1)  # 16 captions in batches of 8, ten times over


BLOCK_PARTS = {"norms": ("ln_1", "ln_2"), "attention": ("attn",), "mlp": ("mlp",)}


@pytest.mark.parametrize("part", [*frozen_finetuning.PARTS, "last:1", "positions mlp", "head embeddings"])
def test_exactly_the_named_part_changes(world, tmp_path, part):
    """The published code froze by overriding parameters(): more trained than was meant."""
    output = train(frozen_finetuning, world, tmp_path, "--train", *part.split())
    before, after = load_checkpoint(world / "literal.pt"), load_checkpoint(output / "frozen_model_weights.pt")
    expected = set()
    for name in before.state_dict():
        place = name.split(".")
        block = place[2] == "h" if name.startswith("gpt.transformer") else False
        for one in part.split():
            head_part = name == "gpt.lm_head.weight" or place[2] == "ln_f"
            if (
                (one == "head" and head_part)
                or (one == "mapping" and place[0] == "clip_project")
                or (one == "embeddings" and place[2] == "wte")
                or (one == "positions" and place[2] == "wpe")
                or (one == "norms" and (place[2] == "ln_f" or (block and place[4] in ("ln_1", "ln_2"))))
                or (one in ("attention", "mlp") and block and place[4] == {"attention": "attn"}.get(one, one))
                or (one == "last:1" and block and place[3] == "1")
            ):
                expected.add(name)
    assert expected and changed(before, after) == expected
    assert after.record["strategy"] == ("head-only" if part == "head" else " + ".join(sorted(part.split())))


def test_an_unknown_part_lists_those_that_exist(world, tmp_path):
    for part in ("tail", "last:3", "last:0"):
        with pytest.raises(UserError, match=f"--train {part} .*head, mapping, .*last:1 to last:2"):
            train(frozen_finetuning, world, tmp_path, "--train", part)


def test_a_frozen_part_has_no_optimizer_state(world, tmp_path):
    output = train(frozen_finetuning, world, tmp_path, "--train", "mapping")
    state = torch.load(output / "state" / "optimizer.bin", weights_only=True)
    assert len(state["state"]) == 4  # the MLP's two weights and two biases


def test_lora_writes_a_small_file_per_rank(world, tmp_path):
    output = train(lora_finetuning, world, tmp_path / "lora", "--rank", "2", "4", "--merged", "--freeze-mapping")
    base = load_checkpoint(world / "literal.pt")
    embedding, tokens = torch.randn(3, 16), torch.tensor([[4, 5, 6]] * 3)
    for rank in (2, 4):
        file = output.with_name(f"lora_{rank}") / f"lora_{rank}_weights.pt"
        assert file.stat().st_size < 0.5 * (world / "literal.pt").stat().st_size
        model = load_checkpoint(file, base=str(world / "literal.pt"))
        standalone = load_checkpoint(file.with_name(f"lora_{rank}_merged_weights.pt"))
        assert torch.allclose(model(embedding, tokens), standalone(embedding, tokens), atol=1e-5)
        adapted = {f"gpt.transformer.h.{n}.{layer}.weight" for n in (0, 1) for layer in ADAPTED}
        assert changed(base, model) == adapted
        assert model.record["strategy"] == f"LoRA {rank}"


ADAPTED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def trained_adapters(
    world: Path, alpha: float = 16.0, dropout: float = 0.0, targets: Sequence[str] = ("c_attn", "c_proj", "c_fc")
) -> tuple[ClipCap, object]:
    model = load_checkpoint(world / "literal.pt")
    settings = inject(model, 3, alpha, dropout, targets)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.train_only(lambda name: ".lora_" in name)
    return model.eval(), settings


def test_saved_loaded_and_merged_adapters_give_the_same_logits(world, tmp_path):
    from clipcap.weights.lora import merged, save_adapters
    from clipcap.weights.places import Base

    model, settings = trained_adapters(world)
    save_adapters(model, tmp_path / "lora.pt", Base.of(str(world / "literal.pt")), settings)
    embedding, tokens = torch.randn(3, 16), torch.tensor([[4, 5, 6]] * 3)
    logits = model(embedding, tokens)
    loaded = load_checkpoint(tmp_path / "lora.pt", base=str(world / "literal.pt"))
    assert torch.allclose(loaded(embedding, tokens), logits, atol=1e-5)
    assert torch.allclose(merged(model)(embedding, tokens), logits, atol=1e-5)
    plain = load_checkpoint(world / "literal.pt")
    assert not torch.allclose(plain(embedding, tokens), logits, atol=1e-2)
    assert model.generate(embedding) == merged(model).generate(embedding) != plain.generate(embedding)


def test_peft_loads_the_exported_folder(world, tmp_path):
    from peft import PeftModel
    from transformers import GPT2LMHeadModel

    from clipcap.weights.lora import merged
    from clipcap.weights.peft_folder import export_peft

    model, settings = trained_adapters(world)
    export_peft(model, settings, tmp_path)
    loaded = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(world / "gpt2"), tmp_path).eval()
    tokens = torch.tensor([[4, 5, 6, 7]])
    assert torch.allclose(loaded(tokens).logits, merged(model).gpt(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_exported_folder_brings_the_gpt2_that_was_trained_on(world, tmp_path, tied):
    """Guards against adapters on hub's gpt2 where they belong on COCO's: peft loaded it, and said other things."""
    from peft import AutoPeftModelForCausalLM

    from clipcap.weights.lora import merged
    from clipcap.weights.peft_folder import export_peft

    model, settings = trained_adapters(world)
    with torch.no_grad():
        model.gpt.transformer.wte.weight.mul_(1.5)  # as training on COCO changes it
    if not tied:
        model.gpt.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.gpt.lm_head.weight) / 10)
        model.config.tied_head = False
    export_peft(model, settings, tmp_path / "peft")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft").eval()
    tokens = torch.tensor([[4, 5, 6, 7]])
    torch.testing.assert_close(loaded(tokens).logits, merged(model).gpt(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_an_export_for_peft_writes_over_no_file_of_the_users(world, tmp_path, monkeypatch, several):
    """It wrote its README.md and its GPT-2 over a thesis, without a word, after the training."""
    there, ranks = tmp_path / "peft" / ("lora_2" if several else ""), ["--rank", "4", "2"] if several else []
    there.mkdir(parents=True)
    (there / "README.md").write_text("# my thesis")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="README.md is of no earlier export"):
        patch.setattr(Trainer, "run", None)  # before any training
        train(lora_finetuning, world, tmp_path / "run", *ranks, "--export-peft", str(tmp_path / "peft"))
    assert {path.name: path.read_text() for path in there.iterdir()} == {"README.md": "# my thesis"}
    (there / "README.md").unlink()
    for again in ([], [], ["--resume"]):  # an export of its own it replaces
        train(lora_finetuning, world, tmp_path / "run", *ranks, "--export-peft", str(tmp_path / "peft"), *again)
    assert (there / "adapter_config.json").is_file() and "LoRA" in (there / "README.md").read_text()


def test_a_run_exports_among_its_own_files(world, tmp_path):
    """Guards against a run, or a sweep of ranks, that takes its own files for others' and cannot be resumed."""
    for folder, ranks, export in (
        (tmp_path, [], tmp_path),
        (tmp_path / "new" / "run", [], tmp_path / "new"),
        (tmp_path / "sweep", ["--rank", "4", "2"], tmp_path),
    ):
        train(lora_finetuning, world, folder, *ranks)
        train(lora_finetuning, world, folder, *ranks, "--export-peft", str(export), "--resume")
    for export in (tmp_path, tmp_path / "new", *(tmp_path / f"lora_{rank}" for rank in (4, 2))):
        assert (export / "adapter_config.json").is_file()
    (tmp_path / "README.md").write_text("# my run")
    with pytest.raises(UserError, match="README.md is of no earlier export"):
        train(lora_finetuning, world, tmp_path, "--export-peft", str(tmp_path), "--resume")


def test_a_lora_file_is_never_half_loaded(world, tmp_path):
    """The published LoRA file was loaded with strict=False: nothing of it, and gibberish came out."""
    from clipcap.weights.lora import save_adapters
    from clipcap.weights.places import Base

    model, settings = trained_adapters(world)
    base = Base.of(str(world / "literal.pt"))
    path = tmp_path / "lora.pt"
    save_adapters(model, path, base, settings)
    content = torch.load(path, weights_only=True)
    for name in list(content["tensors"])[::5]:
        lost = {key: tensor for key, tensor in content["tensors"].items() if key != name}
        torch.save(content | {"tensors": lost}, path)
        with pytest.raises(UserError, match="missing"):
            load_checkpoint(path, base=str(world / "literal.pt"))
    torch.save({key: value for key, value in content.items() if key not in ("base", "lora")}, path)
    with pytest.raises(UserError, match="missing"):
        load_checkpoint(path)


def test_data_in_a_folder_whose_name_is_not_utf_8(world, tmp_path):
    """Guards against weights that nobody can open, since the record in them holds such a name."""
    folder = tmp_path / os.fsdecode(b"donn\xe9es")
    try:
        shutil.copytree(world / "data", folder)
    except OSError:
        pytest.skip("this file system takes no such names")
    output = train(frozen_finetuning, world, tmp_path / "out", "--data", str(folder), "--limit-train", "8")
    assert load_checkpoint(output / "frozen_model_weights.pt").record["data"]["path"].endswith("donn?es")


def test_lora_finds_its_base_or_says_which_it_needs(world, tmp_path):
    from clipcap.weights.lora import save_adapters
    from clipcap.weights.places import Base

    model, settings = trained_adapters(world)
    copy = tmp_path / "base.pt"
    copy.write_bytes((world / "literal.pt").read_bytes())
    save_adapters(model, tmp_path / "lora.pt", Base.of(str(copy)), settings)
    copy.rename(tmp_path / "moved.pt")
    with pytest.raises(UserError, match="base.pt' with SHA-256.*--base"):
        load_checkpoint(tmp_path / "lora.pt")
    load_checkpoint(tmp_path / "lora.pt", base=str(tmp_path / "moved.pt"))
    save_checkpoint(load_checkpoint(world / "literal.pt", prefix_length=4, stop_token=1), tmp_path / "other.pt")
    with pytest.raises(UserError, match="has SHA-256"):
        load_checkpoint(tmp_path / "lora.pt", base=str(tmp_path / "other.pt"))
    copy.write_bytes((world / "literal.pt").read_bytes())
    load_checkpoint(tmp_path / "lora.pt", base=str(tmp_path / "other.pt"))  # that of others in the same comparison
    (content := torch.load(tmp_path / "lora.pt", weights_only=True))["base"]["weights"] = r"C:\runs\base.pt"
    torch.save(content, tmp_path / "lora.pt")
    load_checkpoint(tmp_path / "lora.pt")
    with pytest.raises(UserError, match="holds no adapters and so has no base: leave out .*moved.pt"):
        load_checkpoint(tmp_path / "other.pt", base=str(tmp_path / "moved.pt"))


def test_lora_weights_whose_base_is_elsewhere_are_started_from(world, tmp_path):
    """Guards against a refusal that advises --base to scripts without such an option, and adapters on adapters."""
    base = str(shutil.copy(world / "literal.pt", tmp_path / "base.pt"))
    voice = train(lora_finetuning, world, tmp_path / "voice", "--init", base) / "lora_4_weights.pt"
    base, before = str(shutil.move(base, tmp_path / "moved.pt")), ["--init", str(voice)]
    with pytest.raises(UserError, match="was not found beside it: put that file there, or give it with --base"):
        train(basic_finetuning, world, tmp_path / "again", *before)
    train(basic_finetuning, world, tmp_path / "again", *before, "--base", base)
    shutil.rmtree(voice.parent / "state")  # of another strategy
    again = train(lora_finetuning, world, voice.parent, *before, "--base", base, "--rank", "2") / "lora_2_weights.pt"
    assert load_checkpoint(again, base=base).config == load_checkpoint(voice, base=base).config
    literal = ["--literal-weights", str(voice), "--base", base]
    prompted = train(prompt_finetuning, world, tmp_path / "prompted", *literal) / "prompted_weights.pt"
    assert not changed(load_checkpoint(voice, base=base), load_checkpoint(prompted).literal_captioner)
    for script in (basic_finetuning, prompt_finetuning):
        with pytest.raises(UserError, match="moved.pt is for LoRA weights, and none are named here: leave it out"):
            train(script, world, tmp_path / "useless", "--base", base)


def test_weights_are_fetched_with_a_base_that_has_moved(world, tmp_path, capsys):
    """Guards against advice that names options which this command has not."""
    from clipcap.weights import fetch
    from clipcap.weights.lora import save_adapters
    from clipcap.weights.places import Base

    base = str(shutil.copy(world / "literal.pt", tmp_path / "base.pt"))
    model, settings = trained_adapters(world)
    model.config.clip_model = "/theirs/clip"
    (tmp_path / "voice").mkdir()
    save_adapters(model, voice := tmp_path / "voice" / "lora.pt", Base.of(base), settings)
    with pytest.raises(UserError, match="give it with --base"):
        fetch.main([str(voice)])
    with pytest.raises(UserError, match="'/theirs/clip'.* not opened: give that CLIP with --clip when you caption"):
        fetch.main([str(voice), "--base", base])
    assert str(voice) in capsys.readouterr().out
    with pytest.raises(UserError, match="base.pt is for LoRA weights, and none are named here"):
        fetch.main([base, "--base", base])


def test_a_base_that_cannot_be_downloaded_says_where_to_get_it(world, tmp_path, monkeypatch):
    """Guards against a message that asks for a file without its address."""
    from clipcap.weights.lora import save_adapters
    from clipcap.weights.places import Base

    monkeypatch.setenv("CLIPCAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "gdown", None)
    model, settings = trained_adapters(world)
    save_adapters(model, tmp_path / "lora.pt", Base("coco", "0" * 64), settings)
    with pytest.raises(UserError, match="https://drive.google.com/"):
        load_checkpoint(tmp_path / "lora.pt")


def test_adapters_on_weights_of_the_hub_say_that_only_base_helps(world, tmp_path):
    """Guards against advice to put a file beside the adapters, where none is looked for."""
    from clipcap.weights.lora import save_adapters
    from clipcap.weights.places import Base

    model, settings = trained_adapters(world)
    save_adapters(model, tmp_path / "lora.pt", Base("hf:jane/voice", "0" * 64), settings)
    with pytest.raises(UserError, match="'hf:jane/voice' .* is fetched only if you name it: give it with --base"):
        load_checkpoint(tmp_path / "lora.pt")


@pytest.mark.parametrize("late", [False, True])
def test_a_base_that_another_run_writes_while_it_is_loaded_is_refused(world, tmp_path, monkeypatch, late):
    """Guards against adapters that name a file which they were not trained on."""
    base, other = Path(shutil.copy(world / "literal.pt", tmp_path / "base.pt")), tmp_path / "other.pt"
    save_checkpoint(load_checkpoint(base, prefix_length=4, stop_token=1), other)

    def load(*args, **options):
        if not late:
            other.replace(base)
        model = load_checkpoint(*args, **options)
        if late:
            other.replace(base)
        return model

    monkeypatch.setattr("clipcap.training.start.load_checkpoint", load)
    with pytest.raises(UserError, match="--init .*base.pt was written anew while it was loaded: run the same command"):
        train(lora_finetuning, world, tmp_path / "run", "--init", str(base))


def test_no_run_writes_over_what_it_starts_from(world, tmp_path):
    """Guards against adapters without a base, and starting weights lost to worse ones."""
    literal = str(shutil.copy(world / "literal.pt", tmp_path))
    first = train(lora_finetuning, world, tmp_path, "--init", literal) / "lora_4_weights.pt"
    shutil.rmtree(tmp_path / "state")  # of another strategy
    second = train(lora_finetuning, world, tmp_path, "--init", str(first), "--rank", "2") / "lora_2_weights.pt"
    shutil.rmtree(tmp_path / "state")
    base = train(basic_finetuning, world, tmp_path, "--init", str(second)) / "base_weights.pt"
    merged = Path(shutil.copy(base, tmp_path / "lora_4_merged_weights.pt"))
    before = {file: sha256(file) for file in (first, second, base, merged)}
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path)
    for script, start, output, *more in (
        (lora_finetuning, first, linked),
        (lora_finetuning, second, tmp_path),  # whose own base is the first
        (lora_finetuning, merged, tmp_path, "--merged"),
        (basic_finetuning, base, tmp_path),
        (basic_finetuning, linked / base.name, tmp_path),
    ):
        with pytest.raises(UserError, match="write its own weights over it: choose another --output-dir"):
            train(script, world, output, "--init", str(start), *more)
    assert {file: sha256(file) for file in before} == before


@pytest.mark.parametrize("named", [True, False])
def test_no_rank_trains_before_another_that_would_write_over_what_they_start_from(world, tmp_path, monkeypatch, named):
    """Guards against a refusal that comes after hours, when the turn of the second rank comes."""
    monkeypatch.chdir(tmp_path)
    line = ["--data", str(world / "data"), *FAST, "--rank", "16", "4"]
    folder = Path("own" if named else "runs/lora")
    line += ["--output-dir", str(folder)] if named else []
    files = [Path(f"{folder}_4", name) for name in ("lora_4_merged_weights.pt", "lora_4_weights.pt")]
    files[0].parent.mkdir(parents=True)
    shutil.copy(world / "literal.pt", files[0])
    train(lora_finetuning, world, files[1].parent, "--init", str(files[0]))
    for start, *more in ([files[0], "--merged"], [files[1]]):
        with pytest.raises(UserError, match="write its own weights over it: choose another --output-dir"):
            lora_finetuning.main([*line, "--init", str(start), *more])
        assert not list(tmp_path.rglob("lora_16*.pt"))
    lora_finetuning.main([*line, "--init", str(files[0])])  # which is written with --merged alone
    assert len(list(tmp_path.rglob("lora_16*.pt"))) == 1


def test_a_rank_that_is_named_twice_is_trained_once(world, tmp_path, capsys):
    train(lora_finetuning, world, tmp_path / "run", "--rank", "2", "2")
    assert (tmp_path / "run" / "lora_2_weights.pt").exists()
    assert capsys.readouterr().err.count("of training") == 1


def test_the_model_of_one_rank_has_gone_before_that_of_the_next_is_loaded(world, tmp_path, monkeypatch):
    """Guards against memory for two models: the trained one is in cycles, which Python ends when it happens to."""
    models, alive = [], []

    def watched(*given, **options):
        alive.append(sum(model() is not None for model in models))
        models.append(weakref.ref(model := load_checkpoint(*given, **options)))
        return model

    monkeypatch.setattr("clipcap.training.start.load_checkpoint", watched)
    gc.disable()  # so that it does not happen to
    try:
        train(lora_finetuning, world, tmp_path / "run", "--rank", "2", "4")
    finally:
        gc.enable()
    assert alive == [0, 0]


def test_lora_refuses_what_it_cannot_do(world, tmp_path):
    for options, message in (
        (["--rank", "0"], "from 1 to 32, .* not 0"),
        (["--target", "all-linear", "c_conv"], "--target c_conv matches no layer"),
        (["--target", "c_conv"], "c_conv matches no layer.*c_attn, c_fc, c_proj"),
        (["--language-model", str(world / "gpt2")], "--init"),
        (["--freeze-mapping", "--mapping-learning-rate", "1e-5"], "--mapping-learning-rate has an effect only where"),
    ):
        with pytest.raises(UserError, match=message):
            train(lora_finetuning, world, tmp_path, *options)


def test_adapters_on_prompted_weights_caption(world, prompted, tmp_path):
    """Guards against the literal captioner of the base: adapters that were trained on it could never be opened."""
    output = train(lora_finetuning, world, tmp_path, "--init", str(prompted), "--merged")
    model = load_checkpoint(output / "lora_4_weights.pt", base=str(prompted))
    assert model.literal_captioner is model.config.prompt is None
    embeddings = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    captions = caption_embeddings(model, embeddings, LITERAL)
    assert captions == caption_embeddings(load_checkpoint(output / "lora_4_merged_weights.pt"), embeddings, LITERAL)
    assert any(captions)


def test_a_finished_run_is_resumed_for_the_files_it_lacks(world, tmp_path, monkeypatch):
    """Guards against `--resume --merged` that ends well and writes nothing: it did only where weights got better."""
    monkeypatch.setattr("clipcap.training.trainer.validation_loss", Mock(side_effect=[9.0, 1.0, 2.0]))
    output = train(lora_finetuning, world, tmp_path / "run", "--evals-per-epoch", "2")
    best = read(output / "lora_4_weights.pt")
    extra = ["--merged", "--export-peft", str(tmp_path / "peft")]
    train(lora_finetuning, world, output, "--evals-per-epoch", "2", "--resume", *extra)
    again, exported = read(output / "lora_4_weights.pt"), load_file(tmp_path / "peft" / "adapter_model.safetensors")
    for name, tensor in best["tensors"].items():
        assert torch.equal(tensor, again["tensors"][name])
        if ".lora_" in name:
            peft = f"base_model.model.{name.removeprefix('gpt.').replace('.default.', '.')}"
            assert torch.equal(tensor, exported[peft])
    merged = load_checkpoint(output / "lora_4_merged_weights.pt")
    assert not changed(merged, load_checkpoint(output / "lora_4_weights.pt", base=str(world / "literal.pt")))
    assert merged.record == best["record"] == again["record"]


def test_the_card_counts_captions_once_and_says_how_often_each_was_seen(world, tmp_path):
    """Of 16 captions that LoRA repeats until it has 250 steps, a card that was published said 2,000."""
    repeated = ["--limit-train", "16", "--min-steps", "11", "--epochs", "2", "--patience", "9"]
    output = train(lora_finetuning, world, tmp_path / "lora", *repeated)
    model = load_checkpoint(output / "lora_4_weights.pt", base=str(world / "literal.pt"))
    passes = model.record["epochs"] * 3  # two steps each: the best weights may be those of the first epoch
    card = model_card(model, "jane/voice")
    assert "| training captions | 16 |" in card and f"| passes over the training captions | {passes:g} |" in card
    del model.record["data"]["repeats"]  # as in weights of before, which count every repetition
    assert "training captions |" not in model_card(model, "jane/voice")
    output = train(basic_finetuning, world, tmp_path / "base", "--limit-train", "16")
    model = load_checkpoint(output / "base_weights.pt")
    for _ in range(2):
        card = model_card(model, "jane/base")
        assert "| training captions | 16 |" in card and "| passes over the training captions | 1 |" in card
        model.record["data"].pop("repeats", None)  # also in weights of before: they repeated nothing


@pytest.mark.parametrize("repeats", ["x", [], 0, -1, True, float("nan"), 10**400])
def test_what_a_strangers_record_says_of_repeats_breaks_no_card(repeats):
    model = ClipCap(tiny_config())
    model.record = {"data": {"rows": 16, "repeats": repeats}, "epochs": 1.5}
    assert "training captions |" not in model_card(model, "jane/voice")


def test_prompted_weights_stand_alone_and_hold_the_literal_captioner(world, prompted):
    model, literal = load_checkpoint(prompted), load_checkpoint(world / "literal.pt")
    assert model.config.prompt == " is a picture of {literal} and a social media post would caption it"
    assert not changed(literal, model.literal_captioner)
    assert model.literal_captioner.config.stop_token == literal.config.stop_token != model.config.stop_token
    assert model.record["total_parameters"] == sum(p.numel() for p in literal.parameters())


def test_literal_captions_are_written_once(world, tmp_path, monkeypatch):
    train(prompt_finetuning, world, tmp_path / "first", "--prompt", "literal")
    monkeypatch.setattr("clipcap.training.literals.caption_embeddings", None)  # the second run must not call it
    train(prompt_finetuning, world, tmp_path / "second")
    store = EmbeddingStore.open(world / "data")
    identity = sha256(world / "literal.pt")
    model = load_checkpoint(world / "literal.pt")
    [ids] = model.generate(torch.tensor(store.embeddings("train")[:1]), LITERAL)
    assert store.literal_captions("train", identity)[0] == byte_tokenizer().decode(ids).strip()


def test_prompted_weights_bring_the_literal_captioner_of_the_next_ones(world, prompted, tmp_path):
    """Guards against prompts that a prompted model fills without its own prompt, and against such stored ones."""
    store = EmbeddingStore.open(shutil.copytree(world / "data", tmp_path / "data"))
    store.save_literal_captions("train", sha256(prompted), ["wrong"] * store.info["splits"]["train"])
    options = ["--data", str(store.path), "--init", str(prompted), "--limit-train", "16"]
    second = load_checkpoint(train(prompt_finetuning, world, tmp_path, *options) / "prompted_weights.pt")
    assert not changed(load_checkpoint(world / "literal.pt"), second.literal_captioner)
    right = store.literal_captions("train", sha256(world / "literal.pt"))
    assert store.literal_captions("train", f"{sha256(prompted)}.literal_captioner") == right[:16]


def test_a_literal_captioner_that_needs_a_prompt_is_refused(world, tmp_path):
    model = load_checkpoint(world / "literal.pt")
    model.config.prompt = "they say"
    save_checkpoint(model, tmp_path / "say.pt")
    with pytest.raises(UserError, match="behind the prompt 'they say', .* without it: give one .* --literal-weights"):
        train(prompt_finetuning, world, tmp_path, "--init", str(tmp_path / "say.pt"))


def test_the_prompt_is_data_and_the_loss_never_sees_it(world, tmp_path, monkeypatch):
    seen = []
    original = prompt_finetuning.Experiment.train
    monkeypatch.setattr(
        prompt_finetuning.Experiment,
        "train",
        lambda self, *args, **options: (
            seen.append(self.datasets(options["prompts"])),
            original(self, *args, **options),
        ),
    )
    train(prompt_finetuning, world, tmp_path, "--template", "say: ")
    data, _ = seen[0]
    tokenizer = byte_tokenizer()
    prompt = tokenizer.encode("say:").ids
    batch = collate([data[row] for row in range(4)])
    assert all(batch.tokens[row, : len(prompt)].tolist() == prompt for row in range(4))
    assert (batch.labels[:, : len(prompt)] == -100).all()
    model = load_checkpoint(tmp_path / "prompted_weights.pt")
    assert model.config.prompt == "say: " and model.literal_captioner is None


def test_prompt_and_caption_are_one_running_text(world, tmp_path, monkeypatch):
    """ "it" + "Sunset" once read "itSunset": other tokens than in any text that GPT-2 knows."""
    seen = []
    monkeypatch.setattr(
        prompt_finetuning.Experiment,
        "train",
        lambda self, *args, **options: seen.append((self, self.datasets(options["prompts"]))),
    )
    train(prompt_finetuning, world, tmp_path, "--template", "they say")
    experiment, (data, _) = seen[0]
    _, prompt, caption = data[0]
    written = experiment.store.captions("train")[0]
    assert experiment.tokenizer.decode([*prompt, *caption]) == f"they say {written}"
    whole = experiment.tokenizer.encode(f"they say {written}").ids
    assert [*prompt, *caption] == [*whole, experiment.model.config.stop_token]


def test_prompt_none_is_full_fine_tuning(world, tmp_path):
    prompted = train(prompt_finetuning, world, tmp_path / "prompted", "--prompt", "none")
    full = train(basic_finetuning, world, tmp_path / "full")
    assert not changed(load_checkpoint(prompted / "prompted_weights.pt"), load_checkpoint(full / "base_weights.pt"))


def test_unknown_braces_in_a_template_are_refused(world, tmp_path):
    for template, message in (
        ("{caption}", r"\{caption\}.*\{literal\}"),
        ("{", "cannot be read"),
        ("{literal:d}", "write plain {literal}"),
    ):
        with pytest.raises(UserError, match=message):
            train(prompt_finetuning, world, tmp_path, "--template", template)


@pytest.mark.parametrize("script", [basic_finetuning, prompt_finetuning, lora_finetuning, frozen_finetuning])
def test_every_script_refuses_bad_input_in_one_sentence(world, tmp_path, script):
    blocked = tmp_path / "file"
    blocked.touch()
    init, output = ["--init", str(world / "literal.pt")], ["--output-dir", str(tmp_path / "out")]
    data = ["--data", str(world / "data")]
    for options, message in (
        ([*init, *output], "--data"),
        ([*init, *output, "--data", str(tmp_path / "nowhere")], "does not exist"),
        ([*init, *data, "--output-dir", str(blocked / "out")], "cannot be written"),
        ([*data, *output, "--init", "cocoa"], "known names"),
        ([*init, *data, *output, "--prefix-length", "5"], "leave one of the two out"),
        ([*init, *data, *output, "--epochs", "0"], "--epochs"),
        ([*init, *data, *output, "--limit-train", "-1"], "--limit-train"),
        ([*init, *data, *output, "--seed", "-1"], "--seed"),
        ([*init, *data, *output, "--max-tokens", "600"], "room"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            script.main(options)
        assert "\n" not in str(caught.value)


def test_data_of_another_clip_is_refused(world, tmp_path):
    model = load_checkpoint(world / "literal.pt")
    model.config.clip_model = "ViT-B/32"
    save_checkpoint(model, tmp_path / "other.pt")
    with pytest.raises(UserError, match="made with CLIP tiny"):
        basic_finetuning.main(["--data", str(world / "data"), "--init", str(tmp_path / "other.pt"), *FAST])


def test_a_run_is_not_resumed_with_another_part_or_a_damaged_state(world, tmp_path):
    train(basic_finetuning, world, tmp_path)
    with pytest.raises(UserError, match=r"other --freeze-language-model \(False, not True\)"):
        train(basic_finetuning, world, tmp_path, "--resume", "--freeze-language-model")
    (tmp_path / "state" / "pytorch_model.bin").write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        train(basic_finetuning, world, tmp_path, "--resume")


def test_a_damaged_language_model_is_one_sentence(world, tmp_path):
    folder = tmp_path / "gpt2"
    shutil.copytree(world / "gpt2", folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-500])
    with pytest.raises(UserError, match="could not be loaded"):
        train(basic_finetuning, world, tmp_path / "run", "--language-model", str(folder))
