"""Weights to the hub and from it: bit by bit, in one sentence where that fails, and soon where nobody answers."""

import errno
import json
import os
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from local_hub import local_hub, put
from test_files import file_size_limit
from test_language_models import tiny_network
from tiny import save_tiny_clip, tiny_captioner_model, tiny_model

import predict
from clipcap import offline
from clipcap.clip.encoder import ClipEncoder
from clipcap.errors import UserError
from clipcap.model.clipcap import ClipCap
from clipcap.model.language_model import load_tokenizer
from clipcap.weights import export, fetch, publish, published
from clipcap.weights.card import model_card, without_folders
from clipcap.weights.checkpoint import load_checkpoint, model_payload, save_checkpoint
from clipcap.weights.folder import write_folder
from clipcap.weights.lora import inject, save_adapters
from clipcap.weights.places import Base
from clipcap.weights.publish import push_to_hub
from clipcap.weights.published import resolve_weights
from clipcap.world.scenes import scenes

STRATEGIES = ["full", "head-only", "prompted", "LoRA 2"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with local_hub(monkeypatch, tmp_path / "hub") as hub:
        yield hub


def saved(strategy: str, folder: Path) -> Path:
    """A file of weights as each strategy writes it."""
    file = folder / "weights.pt"
    changes = {"tied_head": False} if strategy == "head-only" else {}
    model = tiny_captioner_model(clip_model="ViT-B/32", clip_pretrained="openai", **changes)
    losses = {"validation": 1.25, "history": [{"loss": float("inf")}]}
    model.record = {"strategy": strategy, "losses": losses, "data": {"path": "/data/jane/my_posts", "rows": 1234}}
    if strategy == "prompted":
        model.config.prompt, model.literal_captioner = "literally {literal}", tiny_captioner_model(seed=1)
    if not strategy.startswith("LoRA"):
        save_checkpoint(model, file)
        return file
    model.config.normalize = True
    save_checkpoint(model, folder / "base.pt")
    settings = inject(model, 2, 16, 0.0, ["c_attn"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    save_adapters(model, file, Base.of(str(folder / "base.pt")), settings)
    return file


def same(a: ClipCap, b: ClipCap) -> bool:
    first, second = a.state_dict(), b.state_dict()
    literals = [m.literal_captioner.config if m.literal_captioner else None for m in (a, b)]
    tied = [m.gpt.lm_head.weight is m.gpt.transformer.wte.weight for m in (a, b)]
    return (
        first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
        and a.config == b.config
        and literals[0] == literals[1]
        and tied[0] == tied[1]
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_pushed_comes_back_bit_by_bit(hub, tmp_path, capsys, strategy):
    """Guards against a strategy whose weights lose a tensor, its literal captioner or its tied head on the way."""
    file = saved(strategy, tmp_path)
    publish.main([str(file), "jane/voice"])
    told = capsys.readouterr().out.strip()
    back = load_checkpoint("hf:jane/voice")
    assert same(load_checkpoint(file), back)
    files = hub.repositories["jane/voice"]["commits"][told.partition("@")[2]]
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert back.record["losses"] == {"validation": 1.25, "history": [{"loss": None}]}
    assert "/data/jane" not in files["config.json"].decode() + files["README.md"].decode(), "a path of this machine"
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: clipcap\n") and f"| strategy | {strategy}" in card
    assert "| data | my_posts |" in card and "| training captions | 1,234 |" in card and "| 1.25 |" in card
    assert 'Captioner.load("hf:jane/voice")' in card and "clipcap photos/ --weights hf:jane/voice" in card
    assert ("merged" in card) == strategy.startswith("LoRA")
    assert ("the mapping network" in card.partition("| data")[0]) == (strategy != "head-only")


def test_the_card_names_all_that_was_trained():
    """ "mapping + norms" was said to have trained the mapping network alone."""
    model = tiny_captioner_model()
    model.record = {"strategy": "mapping + norms"}
    assert "| strategy | mapping + norms |" in model_card(model, "jane/voice")
    model.record = {"strategy": "mapping"}
    assert "| strategy | mapping: the mapping network was trained |" in model_card(model, "jane/voice")


def test_what_a_stranger_wrote_is_no_markdown_on_the_card():
    """Guards against links, pictures and cells of others on a user's page, such as those of the base of a LoRA file."""
    bad = r"![x](//evil.org/x.png) <img src=x> `a` | **b** _c_ d_e ~f~ https://evil.org www.evil.org &lt; \[x](y)"
    text = (
        r"!\[x\](//evil.org/x.png) \<img src=x\> \`a\` \| \*\*b\*\* \_c\_ d_e \~f\~ https\://evil.org www\.evil.org "
        r"\&lt; \\\[x\](y)"
    )
    code = "`" + bad.replace("`", "'").replace("|", "\\|") + "`"
    model = tiny_network("opt", language_model=bad)
    model.config.clip_model, model.config.clip_pretrained, model.config.prompt = bad, None, bad
    model.record = {"strategy": f"LoRA {bad}"}
    card = model_card(model, "jane/voice", data=f"my\n{bad}", scores={bad: 1.5})
    assert f"CLIP {code} into a prefix from which {code} writes" in card and f"adapters in {code} were trained" in card
    for row in (f"strategy | LoRA {text}: the ", f"data | my {text} |", f"caption | {text} |", f"{text} | 1.5 |"):
        assert row in card
    assert "evil" not in card.replace(text, "").replace(code, "")


def test_scores_licence_and_data_stand_on_the_card(hub, tmp_path):
    """Guards against scores of other weights, and a card that is silent about the licence."""
    file = saved("full", tmp_path)
    report = {"models": [{"sha256": published.sha256(file), "scores": {"cider_d": 1.23456, "strategy": "full"}}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    options = ["--report", str(tmp_path / "report.json"), "--license", "cc-by-nc-4.0", "--data", "my own | photos"]
    publish.main([str(file), "jane/voice", *options, "--private", "--revision", "try"])
    repository = hub.repositories["jane/voice"]
    assert repository["private"] and set(repository["branches"]) == {"main", "try"}
    card = repository["commits"][repository["branches"]["try"]]["README.md"].decode()
    assert "| cider_d | 1.235 |" in card and "license: cc-by-nc-4.0\n" in card and "my own \\| photos" in card
    assert "README.md" not in repository["commits"][repository["branches"]["main"]]
    report["models"][0]["sha256"] = "0" * 64
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="has no scores of"):
        publish.main([str(file), "jane/voice", *options])


DAMAGED = ["[1]", '"text"', "5", "null", '[["cider_d", 1]]']


@pytest.mark.parametrize(
    "content",
    [f'{{"models": [{{"sha256": "SHA", "scores": {bad}}}]}}' for bad in DAMAGED]
    + ['{"models": {"sha256": "SHA"}}', '{"models": [[1]]}', '{"models": null}', "[]", "", "\xff", "[" * 100_000],
)
def test_a_damaged_report_is_one_sentence(hub, tmp_path, content):
    """Guards against a traceback in place of a sentence."""
    file, report = saved("full", tmp_path), tmp_path / "report.json"
    report.write_bytes(content.replace("SHA", published.sha256(file)).encode("latin-1"))
    with pytest.raises(UserError, match=r"report.json' is no report.json of evaluate.py$"):
        publish.main([str(file), "jane/voice", "--report", str(report)])
    assert hub.repositories == {}


def test_half_a_character_in_the_name_of_a_score_is_shown_as_one(hub, tmp_path):
    file, report = saved("full", tmp_path), tmp_path / "report.json"
    report.write_text(json.dumps({"models": [{"sha256": published.sha256(file), "scores": {"\ud800": 1.5}}]}))
    publish.main([str(file), "jane/voice", "--report", str(report)])
    repository = hub.repositories["jane/voice"]
    card = repository["commits"][repository["branches"]["main"]]["README.md"].decode()
    assert "| \\ud800 | 1.5 |" in card


def test_a_full_disk_says_where_there_is_no_room(hub, tmp_path, monkeypatch):
    """Guards against a fault of the program: safetensors raises an error of its own, which is no OSError."""
    file = saved("LoRA 2", tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    payload, folder = model_payload(load_checkpoint(file)), tmp_path / "folder"
    folder.mkdir()
    write_folder(payload, folder)
    sizes = sorted((part.stat().st_size, part.name) for part in folder.iterdir())
    assert sizes[-1][1] == "model.safetensors"
    with file_size_limit(sizes[-1][0] - 1), pytest.raises(OSError) as caught:
        write_folder(payload, folder)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(folder / "model.safetensors")
    for size in (sizes[-1][0] - 1, 100):
        told = f"{re.escape(str(tmp_path))}.*could not be written .{os.strerror(errno.EFBIG)}.*set TMPDIR"
        with file_size_limit(size), pytest.raises(UserError, match=told):
            publish.main([str(file), "jane/voice"])
    assert hub.repositories == {} and {path.name for path in tmp_path.iterdir()} == {"weights.pt", "base.pt", "folder"}


def test_another_language_model_than_gpt2(hub, tmp_path):
    """Guards against a card with GPT-2's licence, a path of this machine, and an export that no notebook opens."""
    model = tiny_network("opt", language_model="/data/jane/my-opt")
    model.record = {"strategy": "full"}
    told = push_to_hub(model, "jane/voice")
    files = hub.repositories["jane/voice"]["commits"][told.partition("@")[2]]
    card = files["README.md"].decode()
    assert "GPT-2" not in card and "`my-opt` has a licence of its own" in card and "all of `my-opt` were" in card
    assert "/data/jane" not in card + files["config.json"].decode()
    model.config.language_model = "jane/my-opt"
    save_checkpoint(model, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="write with opt, and the published code knows GPT-2 alone"):
        export.main([str(tmp_path / "weights.pt"), str(tmp_path / "published.pt")])
    assert not (tmp_path / "published.pt").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gpt2", "GPT-2 has OpenAI's modified MIT licence"),
        ("demo", "GPT-2 has OpenAI's modified MIT licence"),
        ("openai-community/gpt2-xl", "GPT-2 has OpenAI's modified MIT licence"),
        ("uer/gpt2-chinese-cluecorpussmall", "`uer/gpt2-chinese-cluecorpussmall` has a licence of its own"),
        ("distilgpt2", "`distilgpt2` has a licence of its own"),
        ("/data/jane/gpt2-mine", "`gpt2-mine` has a licence of its own"),
    ],
)
def test_only_openais_models_have_its_licence(name: str, sentence: str):
    """Guards against a card that gives everybody's GPT-2 the licence of the first."""
    model = tiny_captioner_model(language_model=name)
    model.record = {"strategy": "full"}
    card = model_card(model, "jane/voice")
    assert sentence in card and ("GPT-2" in card) == sentence.startswith("GPT-2")


def test_where_a_clip_lies_is_not_published(hub, capsys):
    """Guards against the owner's name in public, as part of the folder of a CLIP, the literal captioner's too."""
    model = tiny_captioner_model(clip_model="/data/jane/my-clip", clip_pretrained=None, prompt="so {literal}")
    model.literal_captioner = tiny_captioner_model(clip_model="ViT-B/32", clip_pretrained="/data/jane/clip.pt")
    for pushed, clip in ((model, "my-clip"), (model.literal_captioner, "ViT-B/32:clip.pt")):
        told = push_to_hub(pushed, "jane/voice")
        files = hub.repositories["jane/voice"]["commits"][told.partition("@")[2]]
        assert f"of CLIP `{clip}`" in files["README.md"].decode()
        assert "/data/jane" not in files["config.json"].decode() + files["README.md"].decode()
        assert "which others do not have: they need --clip" in capsys.readouterr().err
    assert model.config.clip_model == "/data/jane/my-clip", "the model itself has not moved"


@pytest.mark.parametrize("kind", ["llama", "opt", "qwen3"])  # the heads of the first two are tied
def test_any_language_model_comes_back_bit_by_bit(hub, kind):
    """A tied head was known by GPT-2's names alone: what was pushed of a SmolLM2 could never be opened again."""
    model = tiny_network(kind)
    found = load_checkpoint(push_to_hub(model, "jane/voice")).state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_a_commit_is_that_version_for_ever(hub):
    """Guards against a revision that is ignored."""
    first = push_to_hub(tiny_captioner_model(seed=1), "jane/voice")
    second = push_to_hub(tiny_captioner_model(seed=2), "jane/voice")
    assert same(load_checkpoint(first), tiny_captioner_model(seed=1))
    assert same(load_checkpoint(second), load_checkpoint("hf:jane/voice"))
    assert same(load_checkpoint("hf:jane/voice@main"), tiny_captioner_model(seed=2))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_adapters_name_the_commit_that_they_were_trained_on(hub, tmp_path, monkeypatch, kind):
    """Guards against adapters that nobody can open once the owner of their base has published better weights."""

    def publish_base(seed: int) -> str:
        if kind == "folder":
            return push_to_hub(tiny_captioner_model(seed=seed), "jane/voice")
        save_checkpoint(tiny_captioner_model(seed=seed), tmp_path / "weights.pt")
        return "hf:jane/voice@" + put(hub, "jane/voice", {"v/weights.pt": (tmp_path / "weights.pt").read_bytes()})

    first = publish_base(1)
    bases = [Base.of(name) for name in ("hf:jane/voice", "hf:jane/voice@main", first)]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert {*bases, Base.of("hf:jane/voice")} == {Base(first, published.sha256(resolve_weights(first)))}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    settings = inject(model := tiny_captioner_model(seed=1), 2, 16, 0.0, ["c_attn"])
    save_adapters(model, tmp_path / "lora.pt", bases[0], settings)
    second = publish_base(2)
    assert second != first
    for given in ({}, {"base": "hf:jane/voice"}):
        with pytest.raises(UserError, match=f"'{first}' with SHA-256"):
            load_checkpoint(tmp_path / "lora.pt", **given)
    assert same(load_checkpoint(tmp_path / "lora.pt", base=first), tiny_captioner_model(seed=1))
    (tmp_path / "hf:jane").mkdir()
    save_checkpoint(tiny_captioner_model(), tmp_path / "hf:jane" / "voice")
    monkeypatch.chdir(tmp_path)
    assert Base.of("hf:jane/voice").weights == "hf:jane/voice", "which is a file here"


def test_staged_once_and_captioned_with_the_hub_out_of_reach(hub, tmp_path, capsys, monkeypatch):
    """Guards against staged weights that are asked for again, and a hub that is away and waited for."""
    push_to_hub(load_checkpoint("demo"), "jane/voice")
    fetch.main(["hf:jane/voice"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"hf:jane/voice\t{tmp_path / 'hub'}") and lines[1].startswith("CLIP demo\t")
    assert all(Path(line.split("\t")[1]).exists() for line in lines)
    hub.stop()
    offline._answers.cache_clear()
    (tmp_path / "my photos").mkdir()
    next(iter(scenes("test", 1))).draw().save(tmp_path / "my photos/a.png")
    told = []
    for weights in ("demo", "hf:jane/voice"):
        assert predict.main(["--weights", weights, str(tmp_path / "my photos"), "--workers", "0"]) == 0
        told.append(capsys.readouterr())
    assert told[0].out == told[1].out and "out of reach" in told[1].err
    assert "out of reach" not in told[0].err, "nothing was wanted of the hub"


OTHER = json.dumps({"model_type": "llama"}).encode()
OURS = {"format": "clipcap", "version": 1, "config": {}, "record": {}}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf:jane/nothing", "has no repository jane/nothing, or it is private"),
        ("hf:jane/private", "has no repository jane/private, or it is private.*HF_TOKEN"),
        ("hf:jane/gated", "jane/gated is gated: accept its terms"),
        ("hf:jane/plain@v9", "jane/plain has no revision 'v9'"),
        (
            "hf:jane/plain",
            r"holds neither a config.json of this project nor a single file .pt \(none, but 'config.json'",
        ),
        ("hf:jane/several", r"\(several: 'a.pt', 'b.pt'\)"),
        ("hf:jane/empty", r"\(none, but nothing\)"),
        ("hf:jane/evil", "config.json cannot be read|its config is missing|fields"),
        ("hf:jane/half", "holds no model.safetensors"),
        ("hf:jane/cut", "model.safetensors cannot be read, it may be truncated"),
        ("hf:jane/pickle", "is no file of weights"),
        ("hf:jane", "is no name on the hub; write hf:owner/name"),
        ("hf:../../etc", "is no name on the hub"),
        ("hf:jane/x.git", "jane/x.git is no name on the hub"),
        ("hf:jane/a@../b", "is no name on the hub"),
    ],
)
def test_what_cannot_be_had_from_the_hub_is_one_sentence(hub, monkeypatch, name, told):
    """Guards against tracebacks of a client, and against a stranger's config that is believed."""
    monkeypatch.delenv("HF_TOKEN")
    put(hub, "jane/private", {"config.json": json.dumps(OURS).encode()}, private=True)
    put(hub, "jane/gated", {"config.json": OTHER}, gated=True)
    put(hub, "jane/plain", {"config.json": OTHER})
    put(hub, "jane/several", {"a.pt": b"1", "b.pt": b"2"})
    put(hub, "jane/empty", {})
    from safetensors.torch import save

    tensors = save({"gpt.transformer.wte.weight": torch.ones(2, 2)})
    evil = json.dumps(OURS | {"config": {"auto_map": "evil.py", "tokenizer": None}}).encode()
    put(hub, "jane/evil", {"config.json": evil, "model.safetensors": tensors})
    put(hub, "jane/half", {"config.json": json.dumps(OURS).encode()})
    put(hub, "jane/cut", {"config.json": json.dumps(OURS).encode(), "model.safetensors": tensors[:-3]})
    put(hub, "jane/pickle", {"weights.pt": b"cos\nsystem\n(S'echo'\ntR."})
    with pytest.raises(UserError, match=told) as caught:
        load_checkpoint(name)
    assert "\n" not in str(caught.value)


def test_a_clip_of_the_hub_is_checked_before_it_is_built(hub, tmp_path, monkeypatch):
    """Guards against a config that fills the memory or brings code, and weights that hold NaN."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    folder = save_tiny_clip(tmp_path / "clip")
    config, tensors = (folder / name for name in ("open_clip_config.json", "open_clip_model.safetensors"))
    plain = json.loads(config.read_text())

    def refusal(content, weights=b""):
        weights = weights or tensors.read_bytes()
        put(hub, "jane/clip", {config.name: json.dumps(content).encode(), tensors.name: weights})
        with pytest.raises(UserError) as caught:
            ClipEncoder.load("hf-hub:jane/clip")
        assert "\n" not in str(caught.value) and not asked
        return str(caught.value)

    assert "check its spelling" in str(pytest.raises(UserError, ClipEncoder.load, "hf-hub:jane/none").value)
    put(hub, "jane/code", {"config.json": json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "x.X"}}).encode()})
    model = plain["model_cfg"]
    assert "wants 1000000000 layers" in refusal(
        plain | {"model_cfg": model | {"vision_cfg": model["vision_cfg"] | {"layers": 10**9}}}
    )
    code = {"hf_model_name": "jane/code"}
    assert "execute" in refusal(plain | {"model_cfg": model | {"text_cfg": model["text_cfg"] | code}})
    assert "three numbers" in refusal(plain | {"preprocess_cfg": {"std": [0, 0, 0]}})
    from safetensors.torch import load, save

    assert "NaN" in refusal(plain, save(load(tensors.read_bytes()) | {"visual.proj": torch.full((32, 16), torch.nan)}))
    put(hub, "jane/clip", {config.name: config.read_bytes(), tensors.name: tensors.read_bytes()})
    picture = next(iter(scenes("test", 1))).draw()
    theirs, same = (ClipEncoder.load(name).encode_images([picture]) for name in ("hf-hub:jane/clip", folder))
    assert torch.equal(theirs, same)


@pytest.mark.parametrize("command", [publish, fetch, export], ids=lambda module: module.__name__)
def test_commands_say_how_they_are_called(command, capsys):
    """Guards against argparse, which cannot show two names for one positional argument."""
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0 and told.startswith(f"usage: python -m {command.__name__} ")
    assert max(map(len, told.splitlines())) <= 120
    with pytest.raises(UserError, match=f"like: python -m {command.__name__} "):
        command.main([])


def test_publishing_needs_a_token_and_a_name(hub, monkeypatch, tmp_path):
    file = saved("full", tmp_path)
    for argv, told in (
        ([str(file), "voice"], "write owner/name"),
        ([str(file), "a/b", "--license", "?"], "no licence"),
    ):
        with pytest.raises(UserError, match=told):
            publish.main(argv)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(UserError, match="log in"):
        publish.main([str(file), "jane/voice"])
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="publishing needs a token.*HF_TOKEN"):
        publish.main([str(file), "jane/voice"])
    assert hub.repositories == {}


@pytest.mark.parametrize("trouble", [500, "silent"])
def test_a_hub_that_does_not_answer_costs_seconds(hub, monkeypatch, trouble):
    """Guards against minutes of retries, and a client that waits for ever: it has no time limit of its own."""
    assert 2 * offline.PATIENCE <= 20
    monkeypatch.setattr(offline, "PATIENCE", 0.5)
    offline._answers.cache_clear()
    hub.trouble = trouble
    started = time.monotonic()
    for name in ("hf:jane/voice", "hf:jane/other"):
        with pytest.raises(UserError, match=f"{hub.address} is out of reach, and jane/.* is not in its cache"):
            load_checkpoint(name)
    with pytest.raises(UserError, match="tokenizer of .* could not be loaded .*go online once"):
        load_tokenizer("somebody/gpt2-like")
    assert time.monotonic() - started < 5
    assert len(hub.asked) == 1, "one question for the whole process"


def test_paths_of_every_system_stay_private():
    """Guards against the home folder of who trained in Windows, and publishes from Linux, or the other way round."""
    paths = {"data": [r"D:\Jane Doe\posts", "/data/jane/posts", r"\\nas\jane\posts"], "init": "coco"}
    assert without_folders(paths) == {"data": ["posts"] * 3, "init": "coco"}


@pytest.mark.parametrize("status", [500, 429])
def test_a_single_file_opens_from_the_cache_while_the_hub_has_a_fault(hub, tmp_path, status):
    """Guards against weights that are on the disk, and open only if the hub can list them."""
    model = tiny_captioner_model()
    save_checkpoint(model, tmp_path / "weights.pt")
    put(hub, "jane/file", {"weights.pt": (tmp_path / "weights.pt").read_bytes()})
    assert same(load_checkpoint("hf:jane/file"), model)
    hub.trouble, hub.troubled = status, "/api/"
    assert same(load_checkpoint("hf:jane/file"), model)
    with pytest.raises(UserError, match="the hub refused jane/other .*; try again later"):
        load_checkpoint("hf:jane/other")


@pytest.mark.parametrize("troubled", ["/api/", "/jane/"])
def test_a_hub_that_falls_silent_later_costs_seconds(hub, monkeypatch, capsys, troubled):
    """Guards against a hub that answers the first question and leaves the next one open for ever."""
    kept = push_to_hub(tiny_captioner_model(), "jane/voice")
    push_to_hub(tiny_captioner_model(), "jane/other")
    load_checkpoint("hf:jane/voice")
    monkeypatch.setattr(offline, "PATIENCE", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.4)
    hub.trouble, hub.troubled = "silent", troubled
    started = time.monotonic()
    with pytest.raises(UserError, match="is out of reach, and jane/other is not in its cache"):
        load_checkpoint("hf:jane/other")
    for name in ("hf:jane/voice", kept):
        assert same(load_checkpoint(name), tiny_captioner_model())
    assert time.monotonic() - started < 5
    assert capsys.readouterr().err.count("is out of reach; what it has sent before is used") == 1


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache for published weights, `coco` that may be as small as a tiny model, and no Google Drive."""
    monkeypatch.setenv("CLIPCAP_CACHE", str(tmp_path / "cache"))
    wanted = published.Published("coco_weights.pt", "id", mirror="somebody/coco", clip_dim=16)
    monkeypatch.setitem(published.WEIGHTS, "coco", wanted)
    monkeypatch.setitem(sys.modules, "gdown", None)
    return tmp_path / "cache"


def test_published_weights_come_from_the_hub_first(hub, cache, tmp_path, capsys):
    """Guards against Google Drive's quotas, where a mirror has the file; what came is remembered by its SHA-256."""
    torch.save(tiny_model(gpt2=GPT2).state_dict(), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    put(hub, "somebody/coco", {"README.md": b"", "coco_weights.pt": content})
    assert resolve_weights("coco").read_bytes() == content
    assert sorted(file.name for file in cache.iterdir()) == ["coco_weights.pt", "coco_weights.pt.sha256"]
    asked = len(hub.asked)
    resolve_weights("coco")
    assert len(hub.asked) == asked and "note" not in capsys.readouterr().err


GPT2 = {"vocab_size": 211, "n_positions": 128, "n_embd": 64, "n_layer": 1, "n_head": 1}  # heads 64 wide, as published


@pytest.mark.parametrize(
    "wrong", ["another CLIP", "a transformer", "a tensor more", "no weights", "another name", "gone"]
)
def test_a_mirror_counts_only_with_the_right_model(hub, cache, tmp_path, capsys, monkeypatch, wrong):
    """Guards against a stranger's file that is taken for the published one, and a hub that blocks the way to Drive."""
    torch.save(tiny_model(gpt2=GPT2).state_dict(), tmp_path / "right.pt")
    right = (tmp_path / "right.pt").read_bytes()
    changes = {"another CLIP": {"clip_dim": 24}, "a transformer": {"mapping": "transformer"}}.get(wrong, {})
    tensors = tiny_model(gpt2=GPT2, **changes).state_dict()
    torch.save(tensors | ({"more": torch.ones(2)} if wrong == "a tensor more" else {}), tmp_path / "wrong.pt")
    content = b"<html>" if wrong == "no weights" else (tmp_path / "wrong.pt").read_bytes()
    if wrong != "gone":
        put(hub, "somebody/coco", {"x.pt" if wrong == "another name" else "coco_weights.pt": content})
    with pytest.raises(UserError, match="somebody/coco: .*; Google Drive: .*gdown.*save it as") as caught:
        resolve_weights("coco")
    assert "\n" not in str(caught.value) and list(cache.iterdir()) == []
    drive = SimpleNamespace(download=lambda id, output, timeout: Path(output).write_bytes(right))
    monkeypatch.setitem(sys.modules, "gdown", drive)
    assert resolve_weights("coco").read_bytes() == right
    assert "note: 'coco' does not come from somebody/coco" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_exported_file_is_a_published_one(tmp_path, capsys, strategy):
    """Guards against names that the published notebooks do not find, which they pass over in silence."""
    file = saved(strategy, tmp_path)
    export.main([str(file), str(tmp_path / "published.pt")])
    tensors = torch.load(tmp_path / "published.pt", weights_only=True)
    model = load_checkpoint(file)
    own = {name for name in tensors if not name.startswith("original_model.")}
    assert all(name.startswith(("gpt.", "clip_project.")) for name in own)
    assert len(tensors) == len(model.state_dict())
    back = load_checkpoint(tmp_path / "published.pt", heads=4)
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())
    said = capsys.readouterr().err
    assert ("divide CLIP's embedding by its norm" in said) == strategy.startswith("LoRA")
    assert ("lm_head.weight = nn.Parameter(" in said) == (not model.config.tied_head) == (strategy == "head-only")
    assert "let them stop at token" in said and ("literally {literal}" in said) == (strategy == "prompted")


def test_an_export_goes_over_no_file_that_the_weights_need(tmp_path, monkeypatch):
    """Guards against a LoRA file that loses its config and record, and one that loses its base."""
    adapters, base = saved("LoRA 2", tmp_path), tmp_path / "base.pt"
    linked, link, hard = tmp_path / "linked", tmp_path / "link.pt", tmp_path / "hard.pt"
    linked.symlink_to(tmp_path)
    link.symlink_to(base)
    os.link(base, hard)
    monkeypatch.chdir(tmp_path)
    before = {file: published.sha256(file) for file in (adapters, base)}
    for weights, output in (
        *((adapters, output) for output in (adapters, base, linked / adapters.name, link, hard, "./base.pt")),
        (base, base),
        (link, base),
        ("weights.pt", adapters),
    ):
        told = re.escape(f"{output} is one of the files that {weights} is loaded from, and would be lost: give another")
        with pytest.raises(UserError, match=told):
            export.main([str(weights), str(output)])
    with pytest.raises(UserError, match="is one of the files"):
        export.main([str(adapters), str(hard), "--base", str(link)])
    assert {file: published.sha256(file) for file in before} == before and link.is_symlink()
    (tmp_path / "folder").mkdir()
    write_folder(model_payload(load_checkpoint(base)), tmp_path / "folder")
    for file in (tmp_path / "folder").iterdir():
        with pytest.raises(UserError, match="is one of the files"):
            export.main([str(tmp_path / "folder"), str(file)])
    other = tmp_path / "other.pt"
    for _ in range(2):  # its own earlier output is replaced
        export.main([str(adapters), str(other)])
    assert load_checkpoint(adapters).record and load_checkpoint(other, heads=4)


@pytest.mark.parametrize("output", ["", ".", "/", "folder"])
def test_an_export_to_a_folder_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, output):
    """Guards against a traceback, or a sentence after minutes of downloads."""
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^'{output}' is a folder: give a file to write$"):
        export.main(["coco", output])


def test_gpt2s_tokenizer_needs_no_hub(monkeypatch):
    """Guards against published weights that caption nothing, or nonsense, on a machine without the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("gpt2", "openai-community/gpt2-xl", "distilgpt2"):
        tokenizer = load_tokenizer(name)
        assert tokenizer.get_vocab_size() == 50257 and tokenizer.token_to_id("<|endoftext|>") == 50256
        assert tokenizer.encode("Hello world.").ids == [15496, 995, 13]
        assert tokenizer.decode(tokenizer.encode("sunset 🌅 #sea").ids) == "sunset 🌅 #sea"


def test_gpt2s_tokenizer_is_the_published_one(shared):
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer.from_pretrained(shared / "gpt2_tokenizer").backend_tokenizer
    assert load_tokenizer("gpt2").to_str() == theirs.to_str()


def test_a_folder_on_the_disk_is_weights_too(hub, tmp_path):
    """Guards against a downloaded repository that only opens by its name on the hub."""
    name = push_to_hub(tiny_captioner_model(), "jane/voice")
    folder = resolve_weights(name).parent
    assert re.fullmatch(r"[0-9a-f]{40}", folder.name)
    assert same(load_checkpoint(folder), tiny_captioner_model())
