"""load_data.py as a user drives it: a folder of photos in, a dataset out; nothing lost when something goes wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_sources import dump
from tiny import save_hub_folder, save_tiny_clip

import load_data
from clipcap.clip.encoder import ClipEncoder
from clipcap.data.store import EmbeddingStore
from clipcap.errors import UserError

COUNT = 24


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photos with two captions each, one photo broken, one caption empty, one given twice."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    rows = []
    for number in range(COUNT):
        name = f"{number:02d}.jpg"
        Image.fromarray(noise.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((320, 240)).save(folder / name)
        rows += [{"file_name": name, "caption": f" photo {number} &amp; {word} #a #b "} for word in ("one", "two")]
    (folder / "03.jpg").write_bytes((folder / "03.jpg").read_bytes()[:500])
    rows += [{"file_name": "05.jpg", "caption": " "}, {"file_name": "06.jpg", "caption": "photo 6 & two #a #b"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def load(photos: Path, clip: Path, output: Path, *more: str) -> EmbeddingStore:
    source = ["--source", "folder", str(photos), "--clip", str(clip), "--output", str(output)]
    load_data.main([*source, "--precision", "fp32", "--batch-size", "4", "--workers", "0", *more])
    return EmbeddingStore.open(output)


def test_a_folder_of_photos_becomes_a_dataset(photos: Path, clip: Path, tmp_path: Path, capsys) -> None:
    """Guards against embeddings that are not those of the photo, and counts that do not add up."""
    store = load(photos, clip, tmp_path / "data")
    assert store.info["splits"] == {"train": 42, "validation": 2, "test": 2}
    assert store.info["cleaning"] == {
        "unescape_html": 48, "strip_links": 0, "strip_contacts": 0, "mentions": 0, "trim": 49, "drop_empty": 1,
        "drop_duplicates": 1,
    }  # fmt: skip
    encoder = ClipEncoder.load(clip)
    assert store.clip == encoder.identity
    paths = store.column("test", "image_path")
    assert np.allclose(store.embeddings("test"), encoder.encode_images(paths).numpy(), atol=1e-5)
    captions = {f"photo {int(Path(path).stem)} & {word} #a #b" for path in paths for word in ("one", "two")}
    assert set(store.captions("test")) == captions
    assert len(store.column("test", "thumbnail")[0]) > 500
    output = capsys.readouterr()
    assert "train 42, validation 2, test 2 captions" in output.out and "images/s" in output.err
    assert f"could not be read: 1, listed in {tmp_path / 'data' / 'skipped.jsonl'}" in output.out
    assert json.loads((tmp_path / "data" / "skipped.jsonl").read_text())["image"] == str(photos / "03.jpg")


def test_embeddings_are_computed_in_the_precision_asked_for(photos: Path, clip: Path, tmp_path: Path) -> None:
    exact, rounded = (
        load(photos, clip, tmp_path / precision, "--precision", precision).embeddings("train")[:]
        for precision in ("fp32", "bf16")
    )
    assert np.allclose(exact, rounded, atol=0.05) and not np.allclose(exact, rounded, atol=1e-4)


def test_no_image_is_in_two_splits(photos: Path, clip: Path, tmp_path: Path) -> None:
    fractions, tests = ["--val-fraction", "0.25", "--test-fraction", "0.25"], []
    for seed in ("3", "4"):
        store = load(photos, clip, tmp_path / seed, *fractions, "--seed", seed)
        images = [set(store.column(split, "image_id")) for split in store.splits]
        assert [len(part) for part in images] in ([11, 6, 6], [12, 5, 6], [12, 6, 5])
        assert len(set.union(*images)) == COUNT - 1
        tests.append(set(store.column("test", "image_id")))
    assert tests[0] != tests[1]  # the seed decides


def test_options_reach_the_captions(photos: Path, clip: Path, tmp_path: Path) -> None:
    """Guards against flags that are parsed and forgotten."""
    options = [
        "--limit",
        "2",
        "--val-fraction",
        "0",
        "--test-fraction",
        "0",
        "--max-hashtags",
        "1",
        "--no-unescape-html",
    ]
    store = load(photos, clip, tmp_path / "data", *options)
    assert store.splits == ["train"]
    assert store.captions("train") == [f"photo {i} &amp; {word} #a" for i in (0, 1) for word in ("one", "two")]


def test_an_interrupted_run_goes_on(photos: Path, clip: Path, tmp_path: Path, monkeypatch) -> None:
    """Guards against losing hours of embedding to Ctrl-C, and a resumed dataset that differs from a whole one."""
    monkeypatch.setattr(load_data, "IMAGES_PER_SHARD", 8)
    whole = load(photos, clip, tmp_path / "whole")
    encode, calls = ClipEncoder.encode_pixels, []

    def interrupted(*args):
        calls.append(len(args[1]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(ClipEncoder, "encode_pixels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(photos, clip, tmp_path / "data")
    with pytest.raises(UserError, match="with another cleaning trim"):
        load(photos, clip, tmp_path / "data", "--no-trim")
    calls[:] = [0] * 4
    resumed = load(photos, clip, tmp_path / "data")
    assert sum(calls) == COUNT - 8  # the broken photo is among the first 8
    assert resumed.identity == whole.identity and resumed.info == whole.info
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "data" / file).read_bytes()


def test_a_complete_dataset_is_not_made_again(photos: Path, clip: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    first = load(photos, clip, tmp_path / "data")
    monkeypatch.setattr(ClipEncoder, "encode_pixels", None)
    assert load(photos, clip, tmp_path / "data").info == first.info
    told = "complete already; 1 pictures were skipped: delete it, or choose another --output, to try them again"
    assert told in capsys.readouterr().err  # not "nothing to do": the cause may be mended
    with pytest.raises(UserError, match=r"another allow outside \(False, now True\)"):
        load(photos, clip, tmp_path / "data", "--allow-outside")
    file = tmp_path / "data" / "dataset.json"
    info = json.loads(file.read_text())
    del info["plan"]["allow_outside"], info["plan"]["JPEG decoder"]  # an older dataset
    file.write_text(json.dumps(info | {"skipped": 0}))
    load(photos, clip, tmp_path / "data")
    assert "complete already; nothing to do" in capsys.readouterr().err


def test_decoding_in_worker_processes_gives_the_same(photos: Path, clip: Path, tmp_path: Path) -> None:
    """Guards against what cannot be sent to a worker, and results that come back in another order."""
    here = load(photos, clip, tmp_path / "here")
    workers = load(photos, clip, tmp_path / "workers", "--workers", "2")
    assert here.identity == workers.identity
    assert here.column("validation", "thumbnail") == workers.column("validation", "thumbnail")


def test_instagram_in_the_layout_of_the_hub(clip: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    """Guards against losing the hub's own test split, and a broken row ending the download of an hour."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    splits = {"train": [str(number) for number in range(20)], "test": ["20", "21", "22"]}
    folder = save_hub_folder(tmp_path / "instagram", splits, (photos / "00.jpg").read_bytes())
    output = tmp_path / "data"
    load_data.main(
        ["--source", "instagram", str(folder), "--clip", str(clip), "--output", str(output), "--workers", "2"]
    )
    store = EmbeddingStore.open(output)
    assert store.info["splits"] == {"train": 17, "validation": 1, "test": 3}  # one is broken, one has no caption
    assert store.column("test", "image_id") == ["20", "21", "22"]
    assert np.allclose(store.embeddings("test"), store.embeddings("train")[0], atol=0.1)


def test_another_image_column_is_another_dataset(clip: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    """A rerun with another --image-column said "complete already", and went on with an interrupted dataset."""
    from datasets import Dataset, Features, Image, Value

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = Features(image=Image(), photo=Image(), caption=Value("string"))
    pictures = [{"bytes": (photos / f"{n:02d}.jpg").read_bytes(), "path": f"{n}.jpg"} for n in (0, 1, 2, 4, 5, 6)]
    rows = {"image": pictures[:3], "photo": pictures[3:], "caption": ["a", "b", "c"]}
    (tmp_path / "pairs").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "pairs" / "train.parquet")
    command = ["--source", "hub", str(tmp_path / "pairs"), "--clip", str(clip), "--output", str(tmp_path / "data")]
    load_data.main([*command, "--workers", "0"])
    info = EmbeddingStore.open(tmp_path / "data").info
    assert info["source"] == {"name": "hub", "path": str(tmp_path / "pairs")}  # as in older datasets
    with pytest.raises(UserError, match=r"another source image column \(None, now photo\)"):
        load_data.main([*command, "--workers", "0", "--image-column", "photo"])


def test_a_hub_folder_is_the_same_however_it_is_spelled(clip: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    """`my_ds/` was another source than `my_ds`. Datasets that record what was typed are continued."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    save_hub_folder(tmp_path / "pairs", {"train": ["1", "2", "3"]}, (photos / "00.jpg").read_bytes())
    command = ["--clip", str(clip), "--output", str(tmp_path / "data"), "--workers", "0", "--source", "hub"]
    load_data.main([*command, "pairs"])
    load_data.main([*command, "./pairs/"])
    file = tmp_path / "data" / "dataset.json"
    file.write_text(file.read_text().replace(f'"{tmp_path}/pairs"', '"pairs/"'))
    assert EmbeddingStore.open(tmp_path / "data").info["plan"]["source"]["path"] == "pairs/"
    load_data.main([*command, "pairs"])
    with pytest.raises(UserError, match="another source path"):
        load_data.main([*command, str(save_hub_folder(tmp_path / "others", {"train": ["1", "2", "3"]}, b""))])


def test_the_published_pickle_needs_no_clip(shared: Path, tmp_path: Path, monkeypatch) -> None:
    """Guards against loading CLIP for embeddings that come along, and against losing one of the 100 rows."""
    monkeypatch.setattr(ClipEncoder, "load", None)
    file = shared / "instagram_100" / "embeddings_RN50x4_train.pkl"
    load_data.main(["--source", "clipcap", str(file), "--output", str(tmp_path / "data")])
    store = EmbeddingStore.open(tmp_path / "data")
    assert store.info["splits"] == {"train": 90, "validation": 5, "test": 5}
    assert store.clip == {"model": "RN50x4", "pretrained": "openai", "dim": 640}
    assert store.embeddings("train").shape == (90, 640)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "--source NAME"),
        (["--source", "flickr", "--output", "OUT"], "unknown source 'flickr'"),
        (["--source", "folder", "PHOTOS", "--output", "PHOTOS/00.jpg"], "is a file; give a folder"),
        (["--source", "folder", "PHOTOS", "--output", "PHOTOS/00.jpg/data"], "cannot write into"),
        (["--source", "folder", "PHOTOS", "--output", "PHOTOS"], "holds other files and no dataset"),
        (["--source", "folder", "PHOTOS", "--output", "OUT", "--clip", "ViT-Z/99"], "ViT-Z/99"),
        (
            ["--source", "folder", "PHOTOS", "--output", "OUT", "--batch-size", "0"],
            "--batch-size must be at least 1, not 0",
        ),
        (["--source", "folder", "PHOTOS", "--output", "OUT", "--limit", "0"], "--limit must be at least 1, not 0"),
        (["--source", "folder", "PHOTOS", "--output", "OUT", "--limit", "1"], "too few"),
        (["--source", "instagram", "--output", "OUT"], "kkcosmos/instagram-images-with-captions"),
    ],
)
def test_bad_input_is_one_sentence(photos: Path, tmp_path: Path, argv: list[str], sentence: str) -> None:
    """Guards against tracebacks, and against work that is done before its output turns out to be impossible."""
    argv = [word.replace("PHOTOS", str(photos)).replace("OUT", str(tmp_path / "data")) for word in argv]
    with pytest.raises(UserError, match=sentence) as caught:
        load_data.main(argv)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_checked_against_the_clip_asked_for(shared: Path, tmp_path: Path) -> None:
    file = shared / "instagram_100" / "embeddings_RN50x4_train.pkl"
    with pytest.raises(UserError, match="640 wide, ViT-B/32 makes 512"):
        load_data.main(["--source", "clipcap", str(file), "--clip", "ViT-B/32", "--output", str(tmp_path / "data")])


def test_a_read_only_place_is_found_before_the_work(photos: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(load_data, "open_source", None)
    with pytest.raises(UserError, match="cannot write into '/proc/data'"):
        load_data.main(["--source", "folder", str(photos), "--output", "/proc/data"])


def test_a_disk_that_fills_up_loses_nothing(photos: Path, clip: Path, tmp_path: Path, monkeypatch) -> None:
    """Guards against a traceback, and a dataset that has to be started again."""
    monkeypatch.setattr(load_data, "IMAGES_PER_SHARD", 8)

    def full(path, table, write=load_data.DatasetWriter.write.__globals__["tables"].write_table):
        if path.name == "train-00001.arrow":
            raise OSError(28, "No space left on device")
        write(path, table)

    with monkeypatch.context() as patch:
        patch.setattr("clipcap.data.tables.write_table", full)
        with pytest.raises(UserError, match="No space left on device"):
            load(photos, clip, tmp_path / "data")
    assert (tmp_path / "data" / ".parts" / "train-00000.arrow").is_file()
    assert load(photos, clip, tmp_path / "data").info["splits"]["train"] == 42


def test_demo_only_sets_defaults(clip: Path, tmp_path: Path, monkeypatch) -> None:
    """Guards against a second code path for the demo: it is a source and a CLIP like any other."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clip, tmp_path / "clip")
    load_data.main(["--demo", "--clip", "clip", "--limit", "12", "--workers", "0"])
    store = EmbeddingStore.open("runs/demo/data")
    assert store.info["source"] == {"name": "demo"} and store.info["splits"] == {
        "train": 12,
        "validation": 12,
        "test": 12,
    }
    assert all("#" in caption for caption in store.captions("train"))


@pytest.mark.parametrize("name", ["demo", "hf-hub:owner/name", "ViT-B-32:laion2b_s34b_b79k", "FOLDER"])
def test_pretrained_weights_that_the_models_name_overrides_are_refused(
    photos: Path, clip: Path, tmp_path: Path, name: str
) -> None:
    """Guards against an option that was ignored: the embeddings were those of other weights."""
    name = str(clip) if name == "FOLDER" else name
    with pytest.raises(UserError, match="--pretrained openai has no effect"):
        load(photos, Path(name), tmp_path / "data", "--pretrained", "openai")


def test_embeddings_that_come_along_are_recorded_with_their_weights(tmp_path: Path) -> None:
    """Guards against OpenAI's name for embeddings that `--clip NAME:WEIGHTS` says are those of others."""
    captions = [{"image_id": str(row), "caption": "a dog", "clip_embedding": row} for row in range(40)]
    file = dump(tmp_path / "coco.pkl", {"clip_embedding": torch.randn(40, 512), "captions": captions})
    words = ["--source", "clipcap", str(file), "--clip", "ViT-B-32:laion2b_s34b_b79k"]
    load_data.main([*words, "--output", str(tmp_path / "data")])
    recorded = EmbeddingStore.open(tmp_path / "data").clip
    assert recorded == {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "dim": 512}
    with pytest.raises(UserError, match="--pretrained openai has no effect"):
        load_data.main([*words, "--output", str(tmp_path / "other"), "--pretrained", "openai"])


def test_examples_are_not_held_in_memory(tmp_path: Path) -> None:
    """Guards against a list of three million examples: 2,000 with captions of 5,000 characters took 10 MB."""
    import tracemalloc

    import numpy as np

    from clipcap.cli.processes import Processes
    from clipcap.data.cleaning import Cleaning
    from clipcap.data.embed import write_shards
    from clipcap.data.examples import Example, Listing
    from clipcap.data.selection import select
    from clipcap.data.shards import Shards
    from clipcap.data.sources import SourceArguments
    from clipcap.data.writer import DatasetWriter, claim_folder

    vector = np.ones(4, np.float32)

    def make(folder: Path, count: int) -> None:
        def listed():
            return (Example(str(n), (f"{n} ".ljust(5000, "x"),), clip_embedding=vector) for n in range(count))

        options = Cleaning(strip_contacts=False, strip_links=False, mentions="keep", drop_duplicates="none")
        kept, _ = select(Listing(listed), options, SourceArguments())
        claim_folder(folder)
        writer = DatasetWriter(folder, {}, Shards(kept, 50))
        writer.begin()
        write_shards(writer, writer.missing(), None, 4, 128, 0, Processes())
        clip = {"model": None, "pretrained": None, "dim": 4}
        writer.finish({"source": {"name": "test"}, "clip": clip, "cleaning": {}})

    make(tmp_path / "few", 60)  # so that what libraries import and keep is no matter
    tracemalloc.start()
    try:
        make(tmp_path / "many", 2000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6  # a shard has 0.25 MB
    store = EmbeddingStore.open(tmp_path / "many")
    assert len(store.captions("train")) == 1800
    assert store.embeddings("train").shape == (1800, 4)
