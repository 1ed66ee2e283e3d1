"""Guards predict.py as a user drives it: folders, broken files, second runs, exit statuses."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_files import file_size_limit
from tiny import save_tiny_weights, tiny_captioner_model

import predict
from clipcap import ClipCap, ClipCapConfig, ClipEncoder, save_checkpoint
from clipcap.captioning.sidecars import XMP
from clipcap.cli import status
from clipcap.clip.images import open_image
from clipcap.data.sources import open_source
from clipcap.errors import UserError
from clipcap.files import only_writer
from clipcap.weights.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_tiny_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures in a folder and its subfolder, and a file that is none."""
    random = np.random.default_rng(0)
    (tmp_path / "photos/sub").mkdir(parents=True)
    for index in range(12):
        folder = tmp_path / "photos" / ("sub" if index % 3 == 0 else "")
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48), Image.Resampling.NEAREST).save(folder / f"{index:02}.jpg")
    (tmp_path / "photos" / "broken.jpg").write_text("no picture")
    return tmp_path / "photos"


def run(weights, *arguments) -> int:
    return predict.main(["--weights", str(weights), "--max-tokens", "9", *map(str, arguments)])


def rows(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_folder_with_a_broken_file(weights, photos, tmp_path, capsys):
    assert run(weights, photos, "--output", tmp_path / "out.jsonl") == 1
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    found = rows(tmp_path / "out.jsonl")
    assert [row["image"] for row in found] == sorted(map(str, photos.rglob("*.jpg")))
    captions = {row["image"]: row["caption"] for row in found if "caption" in row}
    assert len(captions) == 12 and len(set(captions.values())) > 1
    escaped = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}  # a tiny model writes anything
    assert lines == [[image, " ".join(caption.split()).translate(escaped)] for image, caption in captions.items()]
    assert [row for row in found if "error" in row] == [
        {"image": str(photos / "broken.jpg"), "error": "not a picture, or a format that is not supported"}
    ]
    assert "captioned 12, failed 1 (1 not a picture" in err and "images/s" in err
    assert f"{photos / 'broken.jpg'}: not a picture" in err


def test_a_second_run_captions_what_is_missing(weights, photos, tmp_path, capsys):
    """And without loading the model where nothing is."""
    out = tmp_path / "out.jsonl"
    run(weights, photos / "sub", "--output", out)
    assert run(weights, photos, "--output", out) == 1
    assert "captioned 8, skipped 4 (captioned already), failed 1" in capsys.readouterr().err
    Image.new("RGB", (40, 40)).save(photos / "broken.jpg")
    assert run(weights, photos, "--output", out) == 0
    assert "captioned 1, skipped 12" in capsys.readouterr().err
    before = out.read_bytes()
    assert run("no such weights", photos, "--output", out) == 0
    assert "all 13 pictures are captioned already" in capsys.readouterr().err
    assert out.read_bytes() == before and len(rows(out)) == 13 == len({row["image"] for row in rows(out)})


def test_a_second_run_has_nothing_to_do_where_folders_above_have_the_same_names(weights, photos, monkeypatch, capsys):
    """What `photos/01.jpg` meant was lost at once: the next run captioned it again, and gave it a second row."""
    trip = photos.parent / "trip"
    shutil.copytree(photos / "sub", trip / "photos")
    shutil.copy(photos / "01.jpg", trip / "photos")
    monkeypatch.chdir(trip)
    for _ in range(2):
        assert run(weights, "photos", "--output", "out.jsonl") == 0
        pictures = [row["image"] for row in rows("out.jsonl")]
        assert pictures == ["photos/00.jpg", str(trip / "photos/01.jpg"), *(f"photos/{n:02}.jpg" for n in (3, 6, 9))]
    assert "all 5 pictures are captioned already" in capsys.readouterr().err and len(pictures) == 5


def test_a_run_that_is_killed_is_continued(weights, tmp_path):
    """Captions are on the disk when they exist, whatever ends the run."""
    (tmp_path / "photos").mkdir()
    for index in range(300):
        Image.new("RGB", (32, 32), (index % 256, 0, 0)).save(tmp_path / f"photos/{index:03}.png")
    command = [sys.executable, str(ROOT / "predict.py"), "--weights", weights, tmp_path / "photos", "--max-tokens", "9"]
    command += ["--output", tmp_path / "out.jsonl", "--batch-size", "4", "--workers", "1"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "out.jsonl").exists() or (tmp_path / "out.jsonl").stat().st_size < 500:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len((tmp_path / "out.jsonl").read_text().splitlines()) < 300
    assert run(weights, tmp_path / "photos", "--output", tmp_path / "out.jsonl") == 0
    assert len({row["image"] for row in rows(tmp_path / "out.jsonl")}) == 300 == len(rows(tmp_path / "out.jsonl"))


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGTERM, "html"), (signal.SIGINT, "jsonl")])
def test_an_interrupted_run_keeps_what_it_has_and_leaves_nothing_behind(weights, tmp_path, number, ending):
    psutil = pytest.importorskip("psutil")
    photos, out = tmp_path / "photos", tmp_path / f"out.{ending}"
    photos.mkdir()
    for index in range(300):
        Image.new("RGB", (32, 32), (index % 256, 0, 0)).save(photos / f"{index:03}.png")
    command = [sys.executable, str(ROOT / "predict.py"), "--weights", weights, photos, "--max-tokens", "9", "--sidecar"]
    command += ["--output", out, "--batch-size", "4", "--workers", "1"]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(4):
            assert process.stdout.readline()
        started = psutil.Process(process.pid).children(recursive=True)
        assert {path.name for path in tmp_path.rglob(".*lock")} == {f".out.{ending}.lock", ".lock"}
        process.send_signal(number)
        said = process.communicate()[1]
    assert process.returncode == 128 + number and "Traceback" not in said
    assert said.splitlines()[-1].endswith("what was written is kept; run the same command to go on")
    assert not [path for path in tmp_path.rglob(".*")]
    text = out.read_text()
    written = text.count("<figure ") if ending == "html" else len(rows(out))
    assert 4 <= written < 300 and text.endswith("</html>\n" if ending == "html" else "}\n")
    assert written - 1 <= len(list(photos.glob("*.txt"))) <= written
    deadline = time.time() + 20
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in started):
        assert time.time() < deadline
        time.sleep(0.05)
    assert run(weights, photos, "--output", out, "--sidecar", "--workers", "0") == 0
    assert len(list(photos.glob("*.txt"))) == 300


def test_a_second_run_on_the_same_output_leaves_at_once(weights, photos, tmp_path):
    """Two runs on one output lost and doubled rows; neither loads a model first."""
    output = ["--output", tmp_path / "out.csv"]
    for options, held in (
        (output, tmp_path / "out.csv"),
        (["--sidecar"], photos / "sub"),
        ([*output, "--sidecar"], photos / "sub"),  # the second output was asked only when the first had a batch
    ):
        with only_writer(held), pytest.raises(UserError, match="is being written by process"):
            run("no-such-weights", photos, *options)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".txt", ".csv", ".lock")]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "html", "sidecar"])
def test_a_full_disk_ends_the_run_with_a_sentence_and_the_next_goes_on(weights, photos, tmp_path, capsys, kind):
    out = ["--sidecar"] if kind == "sidecar" else ["--output", tmp_path / f"out.{kind}"]
    limit = {"jsonl": 700, "csv": 600, "html": 7000, "sidecar": 10}[kind]
    with file_size_limit(limit), pytest.raises(UserError, match=r"\(File too large\)"):
        run(weights, photos, *out, "--workers", "0")
    assert not [path for path in tmp_path.rglob("*.txt") if not path.stat().st_size]
    assert run(weights, photos, *out, "--workers", "0") == 1
    if kind == "sidecar":
        assert len(list(photos.rglob("*.txt"))) == 12
    else:
        assert (tmp_path / f"out.{kind}").read_text().count(str(photos)) == (26 if kind == "html" else 13)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("ending", ["csv", "html"])
def test_other_outputs(weights, photos, tmp_path, ending):
    out = tmp_path / f"out.{ending}"
    assert run(weights, photos, "--output", out, "--num-captions", "2") == 1
    if ending == "csv":
        with out.open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
        assert len(table) == 13 and sum(bool(row["more captions"]) for row in table) == 12
    else:
        assert out.read_text().count("<img ") == 12 and out.read_text().count("<button") == 24


def test_sidecars_beside_an_output(weights, photos, tmp_path):
    assert run(weights, "--sidecar", photos) == 1
    texts = {path: path.read_text() for path in photos.rglob("*.txt")}
    assert len(texts) == 12
    (photos / "01.txt").write_text("mine\n")
    assert run(weights, "--sidecar", photos, "--output", tmp_path / "out.jsonl") == 1
    assert (photos / "01.txt").read_text() == "mine\n" and len(rows(tmp_path / "out.jsonl")) == 13
    assert run(weights, "--sidecar", "--existing", "append", photos / "01.jpg") == 0
    assert (photos / "01.txt").read_text() == "mine\n" + texts[photos / "01.txt"]
    assert run(weights, "--sidecar", "--existing", "overwrite", photos / "01.jpg") == 0
    assert (photos / "01.txt").read_text() == texts[photos / "01.txt"]


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_no_link_leads_sidecars_out_of_the_folders_named(weights, photos, tmp_path, capsys, existing):
    """A folder from a stranger held a link to one of ours, and our own note beside our own picture was overwritten."""
    given, mine = tmp_path / "given", tmp_path / "mine"
    given.mkdir(), mine.mkdir()
    (given / "x").symlink_to("../mine")
    (given / "linked.jpg").symlink_to(photos / "02.jpg")  # a picture alone: its sidecar is not beside what it shows
    shutil.copy(photos / "01.jpg", mine / "dawg.jpg")
    if existing != "skip":
        (mine / "dawg.txt").write_text("my own note")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    options = ["--sidecar", "--xmp", "--existing", existing]
    assert run(weights, given, "--output", tmp_path / "out.jsonl", *options) == 0
    captured = capsys.readouterr()
    assert "dawg.jpg', reached by a link, lies outside the folders named, where no .txt" in captured.err
    assert "captioned 2" in captured.err and f"{given / 'x' / 'dawg.jpg'}\t" in captured.out
    assert [bool(row["caption"]) for row in rows(tmp_path / "out.jsonl")] == [True, True]
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    assert {path.name for path in given.iterdir()} == {"x", "linked.jpg", "linked.txt", "linked.xmp"}
    if existing == "skip":  # and is not captioned again in every run, for nothing
        assert run(weights, given, "--output", tmp_path / "out.jsonl", *options) == 0
        assert "all 2 pictures are captioned or described already, but for those noted" in capsys.readouterr().err
    for named in (["x/dawg.jpg"], ["x"], [".", "../mine"]):  # whoever names it means it
        for path in (mine / "dawg.txt", mine / "dawg.xmp"):
            path.unlink(missing_ok=True)
        assert run(weights, *(given / name for name in named), *options) == 0
        assert (mine / "dawg.txt").exists() and (mine / "dawg.xmp").exists()


def test_a_picture_of_the_name_of_a_captioned_one_sidelines_no_edited_text(weights, photos, capsys):
    """Guards against a machine-written a.jpg.txt beside the edited a.txt, which training no longer read."""
    folder = photos / "sub"
    assert run(weights, "--sidecar", folder) == 0
    image = min(folder.glob("*.jpg"))
    image.with_suffix(".txt").write_text("edited\n")
    Image.new("RGB", (32, 32)).save(image.with_suffix(".png"))
    before = set(folder.iterdir())
    assert run(weights, "--sidecar", folder) == 0 and set(folder.iterdir()) == before
    said = capsys.readouterr().err
    assert f"({image.name!r}, {image.with_suffix('.png').name!r})" in said and "pictures are captioned already" in said
    examples = open_source(["folder", str(folder)]).examples
    assert [item.captions for item in examples if item.image.stem == image.stem] == [("edited\n",)] * 2


def test_a_description_within_a_picture_is_said_to_be_one(weights, tmp_path, capsys):
    """It was "captioned already": many cameras write OLYMPUS DIGITAL CAMERA or the like into every picture."""
    packet = XMP.change(b"", "OLYMPUS DIGITAL CAMERA")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg", xmp=packet)
    assert run(weights, "--xmp", tmp_path) == 0 and not list(tmp_path.glob("*.xmp"))
    said = capsys.readouterr().err
    assert "captioned or described already" in said and "--existing overwrite" in said
    Image.new("RGB", (32, 32)).save(tmp_path / "b.jpg")
    assert run(weights, "--xmp", tmp_path) == 0
    said = capsys.readouterr().err
    assert "note: 1 of the pictures" in said and "skipped 1" in said
    assert run(weights, "--xmp", "--existing", "overwrite", tmp_path) == 0
    assert "note:" not in capsys.readouterr().err and len(list(tmp_path.glob("*.xmp"))) == 2


def test_captions_to_choose_from(weights, photos, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    wishes = ["--num-captions", 3, "--rank", "clip", "--method", "beam", "--require", "dog", "--emoji", "none"]
    assert run(weights, photos / "sub", "--output", out, *wishes, "--ban", "lake", "--ban", "beach") == 0
    for row in rows(out):
        assert row["caption"] == row["captions"][0] and len(set(row["captions"])) == 3
        assert any("dog" in caption for caption in row["captions"])
    assert len(capsys.readouterr().out.splitlines()) == 3 * 4
    assert run(weights, photos / "sub" / "00.jpg", "--require", "xylophonists", "--output", out) == 0
    assert run(weights, photos / "01.jpg", "--require", "xylophonists", "--max-tokens", "4", "--output", out) == 0
    assert rows(out)[-1]["missing"] == ["xylophonists"]
    assert "no caption with 'xylophonists'" in capsys.readouterr().err


def test_the_literal_caption_is_shown_when_asked_for(photos, tmp_path, capsys):
    weights = save_tiny_weights(tmp_path / "prompted", literal=True, prompt=" it is {literal}: ")
    for flags, shown in (([], False), (["--show-literal"], True)):
        assert run(weights, photos / "01.jpg", "--output", tmp_path / f"{shown}.jsonl", *flags) == 0
        assert ("literal" in rows(tmp_path / f"{shown}.jsonl")[0]) == shown
        assert ("\tliteral: " in capsys.readouterr().out) == shown
        assert run(weights, photos / "01.jpg", "--output", tmp_path / f"{shown}.csv", *flags) == 0
        with (tmp_path / f"{shown}.csv").open(encoding="utf-8-sig", newline="") as file:
            assert [bool(row.get("literal")) for row in csv.DictReader(file)] == [shown]


def test_exit_status_two_when_nothing_could_be_done(weights, photos, tmp_path):
    assert run(weights, photos / "broken.jpg") == 2
    (tmp_path / "empty").mkdir()
    for arguments, told in [
        ([tmp_path / "empty"], "no pictures"),
        ([tmp_path / "nowhere"], "does not exist"),
        ([], "pictures"),
        ([photos, "--output", photos / "01.jpg" / "out.jsonl"], "cannot be written"),
        ([photos, "--output", "out.xlsx"], "ends in"),
        ([photos, "--temperature", "0"], "temperature"),
        ([photos, "--batch-size", "0"], "--batch-size"),
        ([photos, "--ban", "dog", "--require", "dog"], "ruled out"),
        ([photos, "--ban-file", tmp_path / "nowhere.txt"], "cannot be read"),
    ]:
        with pytest.raises(UserError, match=told):
            run(weights, *arguments)
    with pytest.raises(UserError, match="no-such-weights"):
        run("no-such-weights.pt", photos, "--output", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_errors_are_one_sentence(tmp_path):
    command = [sys.executable, str(ROOT / "predict.py"), "--weights", "x.pt", str(tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_outputs_are_checked_before_torch_is_loaded(tmp_path):
    """Seconds of imports for a misspelt folder."""
    code = "import sys, predict\ntry: predict.main(sys.argv[1:])\nexcept Exception: sys.exit('torch' in sys.modules)"
    for wrong in (
        ["nowhere"],
        [str(ROOT), "--output", "/dev/null/x.jsonl"],
        [str(ROOT), "--ban", "a", "--require", "a"],
    ):
        command = [sys.executable, "-c", code, "--weights", "x.pt", *wrong]
        assert subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == 0, wrong


def test_head_closes_the_pipe_in_peace(weights, photos, monkeypatch, capfd):
    """Guards against a traceback behind `predict.py photos | head -n 1`."""
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        patch.setattr(sys, "argv", ["predict.py", "--weights", str(weights), "--max-tokens", "9", str(photos)])
        with pytest.raises(SystemExit) as ended:
            status.run(predict.main)
    assert ended.value.code == status.BROKEN_PIPE and "Traceback" not in capfd.readouterr().err


def test_full_size_models_caption_the_photos(shared, tmp_path, capsys):
    """ViT-B/32 and GPT-2 small with random weights, as big as the real ones, through files and folders."""
    import open_clip

    clip = tmp_path / "clip"
    clip.mkdir()
    torch.save(open_clip.create_model("ViT-B-32", force_quick_gelu=True).state_dict(), clip / "weights.pt")
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32") | {"quick_gelu": True}}
    (clip / "open_clip_config.json").write_text(json.dumps(config))
    check_reduced_jpegs(clip, list((shared / "photos").iterdir()))
    gpt2 = {"n_embd": 768, "n_layer": 12, "n_head": 12}
    model = ClipCap(
        ClipCapConfig(clip_model=str(clip), clip_pretrained=None, language_model=str(tmp_path / "gpt2"), gpt2=gpt2)
    )
    shutil.copytree(shared / "gpt2_tokenizer", tmp_path / "gpt2")
    save_checkpoint(model, tmp_path / "weights.pt")
    del model
    assert run(tmp_path / "weights.pt", shared / "photos", "--output", tmp_path / "out.jsonl") == 0
    assert len(rows(tmp_path / "out.jsonl")) == 14 == len(capsys.readouterr().out.splitlines())


def check_reduced_jpegs(clip, photos):
    """A JPEG decoded at no more than twice the size that CLIP needs gives the embedding of the whole one."""
    encoder = ClipEncoder.load(clip)
    pixels = [encoder.preprocessing.pixels(open_image(photo)) for photo in photos]
    similar = torch.cosine_similarity(encoder.encode_images(photos), encoder.encode_pixels(np.stack(pixels)))
    assert similar.min() > 0.999


def test_published_prompted_weights_take_the_prompt_that_ours_are_trained_with(weights, tmp_path, monkeypatch):
    """Guards against an option without effect, and against one that takes away the prompt that weights know."""
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    own, literal = (tiny_captioner_model(seed).state_dict() for seed in (0, 1))
    torch.save(own | {f"original_model.{name}": tensor for name, tensor in literal.items()}, tmp_path / "own.pt")

    def load(weights, *, prompt, **_):
        raise UserError(f"prompt: {load_checkpoint(weights, heads=4, prompt=prompt).config.prompt}")

    monkeypatch.setattr("clipcap.captioning.captioner.Captioner", SimpleNamespace(load=load))
    for options, wanted in (([], "None"), (["--with-prompt"], " is a picture of {literal} and a social")):
        with pytest.raises(UserError, match=f"prompt: {wanted}"):
            predict.main(["--weights", str(tmp_path / "own.pt"), *options, str(tmp_path / "a.png")])
    with pytest.raises(UserError, match=r"trained with the prompt None, .*leave prompt= \(--with-prompt\) out"):
        predict.main(["--weights", str(weights), "--with-prompt", str(tmp_path / "a.png")])


@pytest.mark.parametrize(
    ("options", "wanted"), [([], None), (["--normalize"], True), (["--no-normalize"], False)], ids=str
)
def test_whether_embeddings_are_normalised_is_passed_on(tmp_path, monkeypatch, options, wanted):
    """Guards against --normalize without effect."""
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")

    def load(weights, *, normalize, **_):
        raise UserError(f"normalize: {normalize}")

    monkeypatch.setattr("clipcap.captioning.captioner.Captioner", SimpleNamespace(load=load))
    with pytest.raises(UserError, match=f"normalize: {wanted}"):
        predict.main(["--weights", "own.pt", *options, str(tmp_path / "a.png")])


def test_help_fits_two_screens(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 60
