"""A dataset in the making: pictures that change, full disks, signals, a second run. Nothing is lost or mixed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_files import file_size_limit
from tiny import save_tiny_clip

import load_data
from clipcap.clip.encoder import ClipEncoder
from clipcap.data.store import EmbeddingStore
from clipcap.data.writer import DatasetWriter
from clipcap.errors import Interrupted, UserError
from clipcap.files import only_writer

ROOT = Path(__file__).resolve().parent.parent
COUNT = 24


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(COUNT):
        paint(folder / f"{number:02d}.bmp", number)
    rows = [{"file_name": f"{number:02d}.bmp", "caption": f"photo {number}"} for number in range(COUNT)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_data, "IMAGES_PER_SHARD", 8)


def paint(file: Path, seed: int) -> None:
    """A picture of noise; a .bmp of one size has one file size, whatever it shows."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file)


def command(photos: Path, clip: Path, output: Path, *more: str) -> list[str]:
    source = ["--source", "folder", str(photos), "--clip", str(clip), "--output", str(output)]
    return [*source, "--precision", "fp32", "--batch-size", "4", "--workers", "0", *more]


def load(photos: Path, clip: Path, output: Path, *more: str) -> EmbeddingStore:
    load_data.main(command(photos, clip, output, *more))
    return EmbeddingStore.open(output)


def stop_in_batch(monkeypatch: pytest.MonkeyPatch, batch: int, error: BaseException) -> None:
    encode, calls = ClipEncoder.encode_pixels, []

    def encode_or_stop(*args):
        calls.append(args)
        if len(calls) == batch:
            raise error
        return encode(*args)

    monkeypatch.setattr(ClipEncoder, "encode_pixels", encode_or_stop)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# pictures that change under their names


@pytest.fixture(params=["finished", "interrupted"])
def begun(request, photos: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of all pictures, or one whose first shard alone is written."""
    options = ("--val-fraction", "0", "--test-fraction", "0")
    with monkeypatch.context() as patch:
        if request.param == "interrupted":
            stop_in_batch(patch, 4, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                load(photos, clip, tmp_path / "data", *options)
        else:
            load(photos, clip, tmp_path / "data", *options)
    return tmp_path / "data"


def again(photos: Path, clip: Path, output: Path) -> EmbeddingStore:
    return load(photos, clip, output, "--val-fraction", "0", "--test-fraction", "0")


def keep_time(file: Path, change) -> None:
    before = file.stat()
    change(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_changed_picture_makes_the_dataset_stale_and_is_named(begun: Path, photos: Path, clip: Path) -> None:
    """Guards against embeddings of a picture that is no longer the one under that name."""
    before = contents(begun)
    paint(photos / "03.bmp", 99)
    with pytest.raises(
        UserError, match=r"stale: 1 of its pictures changed .*photos/03.bmp'\); put them back"
    ) as caught:
        again(photos, clip, begun)
    assert str(caught.value).isprintable() and contents(begun) == before
    paint(photos / "03.bmp", 3)  # the old picture comes back with another time
    again(photos, clip, begun)


def test_change_of_size_is_noticed_though_the_time_is_kept(begun: Path, photos: Path, clip: Path) -> None:
    keep_time(photos / "03.bmp", lambda file: file.write_bytes(file.read_bytes() + b"\0"))
    with pytest.raises(UserError, match="stale: 1 of its pictures"):
        again(photos, clip, begun)


def test_copied_pictures_are_the_same_pictures(begun: Path, photos: Path, clip: Path) -> None:
    """Guards against a store that is called stale because a backup was restored: the content decides, not the time."""
    for file in photos.glob("*.bmp"):
        os.utime(file, (1, 1))
    assert again(photos, clip, begun).info["splits"] == {"train": COUNT}


def test_unchanged_pictures_are_not_read_again(begun: Path, photos: Path, clip: Path, monkeypatch) -> None:
    """Guards against minutes of reading before a run that has nothing to do says so."""
    monkeypatch.setattr("clipcap.data.changes._content", lambda example: pytest.fail("read"))
    if (begun / "dataset.json").is_file():
        again(photos, clip, begun)
    else:
        stop_in_batch(monkeypatch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            again(photos, clip, begun)


def test_picture_that_is_gone_leaves_its_embedding_good(begun: Path, photos: Path, clip: Path) -> None:
    (photos / "03.bmp").unlink()
    assert again(photos, clip, begun).info["splits"] == {"train": COUNT}


@pytest.mark.parametrize("fault", ["changed", "gone with its folder"])
def test_picture_that_changes_while_it_is_embedded_is_not_taken_for_the_new_one(
    fault: str, photos: Path, clip: Path, tmp_path: Path, monkeypatch
) -> None:
    """Guards against a hash of a picture that was never embedded, and against a network drive that goes away."""
    taken = DatasetWriter.write

    def late(writer, shard, rows, skipped):
        paint(photos / "03.bmp", 99) if fault == "changed" else photos.rename(tmp_path / "away")
        taken(writer, shard, rows, skipped)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "write", late)
        with pytest.raises(UserError, match="pictures changed or went away while they were embedded"):
            again(photos, clip, tmp_path / "data")
    if fault != "changed":
        (tmp_path / "away").rename(photos)
    again(photos, clip, tmp_path / "data")
    assert contents(tmp_path / "data") == contents(again(photos, clip, tmp_path / "whole").path)


def test_picture_not_yet_embedded_may_change(photos: Path, clip: Path, tmp_path: Path, monkeypatch) -> None:
    options = ("--val-fraction", "0", "--test-fraction", "0")
    with monkeypatch.context() as patch:
        stop_in_batch(patch, 4, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            load(photos, clip, tmp_path / "data", *options)
    paint(photos / "20.bmp", 99)
    continued = again(photos, clip, tmp_path / "data")
    assert contents(tmp_path / "data") == contents(again(photos, clip, tmp_path / "whole").path)
    assert continued.info["skipped"] == 0


def test_skipped_picture_that_was_repaired_is_noticed(photos: Path, clip: Path, tmp_path: Path) -> None:
    (photos / "03.bmp").unlink()
    assert load(photos, clip, tmp_path / "data").info["skipped"] == 1
    paint(photos / "03.bmp", 3)
    with pytest.raises(UserError, match="stale: 1 of its pictures .*03.bmp"):
        load(photos, clip, tmp_path / "data")


def test_another_list_of_images_is_told_in_words(begun: Path, photos: Path, clip: Path) -> None:
    """Guards against a message that holds two hashes."""
    rows = (photos / "metadata.jsonl").read_text().splitlines()
    rows = [rows[0].replace("photo 0", "another"), *rows[2:], '{"file_name": "new.bmp", "caption": "x"}']
    (photos / "metadata.jsonl").write_text("\n".join(rows))
    words = (
        r"another list of images and captions \(1 new \(the first: 'new.bmp'\), 1 gone \(the first: '01.bmp'\), "
        r"1 with other captions \(the first: '00.bmp'\)\); choose another --output or delete it"
    )
    with pytest.raises(UserError, match=words):
        again(photos, clip, begun)


def test_one_other_caption_is_noticed(begun: Path, photos: Path, clip: Path) -> None:
    text = (photos / "metadata.jsonl").read_text()
    (photos / "metadata.jsonl").write_text(text.replace("photo 23", "photo 24"))
    with pytest.raises(UserError, match=r"captions \(1 with other captions \(the first: '23.bmp'\)\)"):
        again(photos, clip, begun)


def test_another_order_or_split_is_told_in_words(begun: Path, photos: Path, clip: Path) -> None:
    rows = (photos / "metadata.jsonl").read_text().splitlines()
    (photos / "metadata.jsonl").write_text("\n".join(rows[::-1]))
    with pytest.raises(UserError, match=r"captions \(in another order\)"):
        again(photos, clip, begun)
    (photos / "metadata.jsonl").write_text("\n".join([rows[0].replace("}", ', "split": "test"}'), *rows[1:]]))
    with pytest.raises(UserError, match=r"captions \(1 in another split \(the first: '00.bmp'\)\)"):
        again(photos, clip, begun)


@pytest.mark.parametrize("kind", ["tar", "clipcap"])
def test_changed_tar_or_pickle_is_noticed(kind: str, photos: Path, clip: Path, tmp_path: Path) -> None:
    """Guards against names and captions that are the same around other bytes."""
    import pickle
    import tarfile

    import torch

    def write(changed: bool) -> str:
        if kind == "tar":
            with tarfile.open(tmp_path / "x.tar", "w") as archive:
                for number in range(3):
                    archive.add(
                        photos / ("05.bmp" if changed and number == 1 else f"{number:02d}.bmp"), f"{number}.bmp"
                    )
                    archive.add(photos / "metadata.jsonl", f"{number}.txt")
            return str(tmp_path / "x.tar")
        vectors = torch.arange(6, dtype=torch.float32).repeat_interleave(512).view(6, 512)[:3] + 1
        vectors[1] += changed
        captions = [{"image_id": str(i), "caption": "x", "clip_embedding": i} for i in range(3)]
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({"clip_embedding": vectors, "captions": captions}))
        return str(tmp_path / "x.pkl")

    source = [kind, write(False)]
    argv = ["--source", *source, "--output", str(tmp_path / "data"), "--val-fraction", "0", "--test-fraction", "0"]
    argv += ["--clip", str(clip)] if kind == "tar" else []
    load_data.main(argv)
    write(False)
    load_data.main(argv)
    write(True)
    with pytest.raises(UserError, match="stale: 1 of its pictures .*1'"):
        load_data.main(argv)


def test_dataset_of_an_older_version_is_still_taken(begun: Path, photos: Path, clip: Path) -> None:
    """Guards against hours of embedding called stale because nobody had written down what the pictures were.

    One that an older version began is another matter: its shards are of another format.
    """
    if (begun / "dataset.json").is_file():
        (begun / "pictures.arrow").unlink()
        assert again(photos, clip, begun).info["splits"] == {"train": COUNT}
        return
    plan = begun / ".parts" / "plan.json"
    older = json.loads(plan.read_text())
    del older["format"]
    plan.write_text(json.dumps(older))
    with pytest.raises(UserError, match="was begun by another version of load_data.py: delete it, or finish it with"):
        again(photos, clip, begun)


# one writer at a time


def test_second_run_leaves_the_folder_alone(photos: Path, clip: Path, tmp_path: Path) -> None:
    load(photos, clip, tmp_path / "data")
    before = contents(tmp_path / "data")
    with only_writer(tmp_path / "data"):
        with pytest.raises(UserError, match=f"being written by process {os.getpid()} on .* since"):
            load(photos, clip, tmp_path / "data")
        assert before.items() <= contents(tmp_path / "data").items()


def test_run_killed_before_its_first_shard_leaves_a_folder_that_can_be_used(
    photos: Path, clip: Path, tmp_path: Path
) -> None:
    """Guards against a lock left by SIGKILL that counts as "other files"."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".lock").write_text("process 1 on elsewhere since 2026-01-31 12:00:00")
    (tmp_path / "data" / ".probe-1").touch()
    assert load(photos, clip, tmp_path / "data").info["skipped"] == 0


def test_leftovers_of_a_run_that_ended_in_its_last_step_go(photos: Path, clip: Path, tmp_path: Path) -> None:
    load(photos, clip, tmp_path / "data")
    (tmp_path / "data" / ".parts").mkdir()
    load(photos, clip, tmp_path / "data")
    assert not (tmp_path / "data" / ".parts").exists()


# full disks


@pytest.mark.parametrize("step", ["the captions", "a shard", "the split"])
def test_full_disk_is_one_sentence_and_the_run_goes_on_after_space_is_made(
    step: str, photos: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a traceback, half a file under a whole one's name, and a dataset that has to be started again."""
    monkeypatch.setattr(load_data, "IMAGES_PER_SHARD", 4)
    with (photos / "metadata.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file_name": "00.bmp", "caption": "long " * 1600}))
    whole = load(photos, clip, tmp_path / "whole")
    split = (whole.path / "train" / "data.arrow").stat().st_size
    with (
        file_size_limit({"the captions": 5000, "a shard": 9000, "the split": split - 1}[step]),
        pytest.raises(UserError, match="could not be written .File too large.*make room") as caught,
    ):
        load(photos, clip, tmp_path / "data")
    place = {"the captions": "set TMPDIR", "a shard": ".parts/train-", "the split": "train/data.arrow"}[step]
    assert place in str(caught.value)
    left = contents(tmp_path / "data")
    assert not [name for name in left if "unfinished" in name] and "dataset.json" not in left
    assert len([name for name in left if name.startswith(".parts/train-")]) == (6 if step == "the split" else 0)
    assert load(photos, clip, tmp_path / "data").identity == whole.identity
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


@pytest.mark.parametrize("room", range(20, 120, 20))
def test_really_full_disk(room: int, photos: Path, clip: Path, tmp_path: Path) -> None:
    """The same on a small file system, which is full at another place for each of its sizes (in KiB)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can be mounted only with the rights to do so")
    try:
        try:
            load(photos, clip, disk / "data")
        except UserError as error:
            assert "No space left on device" in str(error) and "make room" in str(error)
        assert not [file for file in disk.rglob("*") if "unfinished" in file.name]
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        load(photos, clip, disk / "data")
        load(photos, clip, tmp_path / "whole")
        assert contents(disk / "data") == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# signals


@pytest.mark.parametrize("batch", [1, 3, 5, 6])
def test_interruption_anywhere_ends_in_the_same_dataset(
    batch: int, photos: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(photos, clip, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_in_batch(patch, batch, Interrupted("terminated", signal.SIGTERM))
        with pytest.raises(Interrupted):
            load(photos, clip, tmp_path / "data")
    assert not (tmp_path / "data" / ".lock").exists()
    load(photos, clip, tmp_path / "data")
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_the_command_with_a_sentence_and_all_that_was_written(
    number: int, status: int, photos: Path, clip: Path, tmp_path: Path
) -> None:
    """With worker processes, which must end too, in the middle of the second shard."""
    code = (
        "if __name__ == '__main__':\n"
        "    import time, load_data; from clipcap.cli.status import run\n"
        "    from clipcap.clip.encoder import ClipEncoder as E\n"
        "    load_data.IMAGES_PER_SHARD = 8; encode = E.encode_pixels\n"
        "    E.encode_pixels = lambda *args: time.sleep(0.3) or encode(*args)\n"
        "    run(load_data.main)"
    )
    (tmp_path / "slow.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, str(tmp_path / "slow.py"), *command(photos, clip, tmp_path / "data", "--workers", "2")]
    process = subprocess.Popen(
        argv, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "data" / ".parts" / "train-00000.arrow").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)  # as Ctrl-C does
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status, said
    assert said.splitlines()[-1].endswith("what was written is kept; run the same command to go on")
    assert "Traceback" not in said and not (tmp_path / "data" / ".lock").exists()
    assert (tmp_path / "data" / ".parts" / "train-00000.arrow").is_file()
    load(photos, clip, tmp_path / "data")
    load(photos, clip, tmp_path / "whole")
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


# options


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--val-fraction", "nan", "fractions .*nan"),
        ("--val-fraction", "inf", "fractions .*inf"),
        ("--val-fraction", "-0.1", "fractions .*-0.1"),
        ("--val-fraction", "1.5", "fractions .*1.5"),
        ("--val-fraction", "0.95", "fractions .*validation 0.95, test 0.05"),
        ("--test-fraction", "0.96", "fractions .*validation 0.05, test 0.96"),
        ("--limit", "0", "--limit must be at least 1, not 0"),
        ("--limit", "-3", "--limit must be at least 1, not -3"),
        ("--batch-size", "-1", "--batch-size must be at least 1, not -1"),
        ("--batch-size", str(10**30), "--batch-size must be at most"),
        ("--workers", "-1", "--workers must be at least 0, not -1"),
        ("--workers", "100000", "--workers must be at most"),
        ("--max-hashtags", "-1", "--max-hashtags must be at least 0, not -1"),
    ],
)
def test_option_out_of_range_is_refused_before_anything_is_read(
    option: str, value: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_data, "open_source", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match=sentence):
        load_data.main(["--source", "folder", "photos", "--output", str(tmp_path / "data"), f"{option}={value}"])


@pytest.mark.parametrize(
    ("option", "value"),
    [("--seed", "-1"), ("--seed", str(2**70)), ("--limit", str(10**30))],
)
def test_large_or_negative_value_that_means_something_is_taken(
    option: str, value: str, photos: Path, clip: Path, tmp_path: Path
) -> None:
    store = load(photos, clip, tmp_path / "data", f"{option}={value}")
    assert sum(store.info["splits"].values()) == COUNT


def test_large_batch_asks_for_no_more_pictures_than_a_shard_has(
    photos: Path, clip: Path, tmp_path: Path, monkeypatch
) -> None:
    """Guards against all pictures of a source decoded and in memory at once."""
    asked = []

    def batches(images, preprocessing, batch_size, workers, real=load_data.write_shards.__globals__["pixel_batches"]):
        asked.append(batch_size)
        return real(images, preprocessing, batch_size, workers)

    monkeypatch.setattr("clipcap.data.embed.pixel_batches", batches)
    load(photos, clip, tmp_path / "data", "--batch-size", "4000")
    assert max(asked) <= 8


def test_folder_and_names_that_are_not_utf8(photos: Path, clip: Path, tmp_path: Path) -> None:
    """Guards against a traceback in the very last step, when the names are written down."""
    odd = Path(os.fsdecode(os.fsencode(photos.parent) + b"/caf\xe9"))
    shutil.copytree(photos, odd)
    broken = Path(os.fsdecode(os.fsencode(odd) + b"/\xff.bmp"))
    broken.write_bytes(b"no picture")
    with (odd / "metadata.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file_name": broken.name, "caption": "x"}))
    store = load(odd, clip, tmp_path / "data")
    assert load(odd, clip, tmp_path / "data").info == store.info
    [line] = (tmp_path / "data" / "skipped.jsonl").read_bytes().decode("utf-8").splitlines()
    assert json.loads(line)["image"].endswith(r"caf\udce9/\udcff.bmp")
