"""The embedding store: built in shards that survive a kill, read without a copy, and never silently wrong."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clipcap.cli.processes import Processes
from clipcap.clip.images import UnreadableImage
from clipcap.clip.preprocessing import Preprocessing
from clipcap.data.embed import embed_shards, to_rows, write_shards
from clipcap.data.examples import Example
from clipcap.data.shards import Shards
from clipcap.data.store import EmbeddingStore, check_clip
from clipcap.data.writer import DatasetWriter, claim_folder
from clipcap.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CLIP = {"model": "ViT-B/32", "pretrained": "openai", "dim": 4}


class FakeEncoder:
    """An embedding that tells which picture it belongs to: its mean colour, then the size of its batch."""

    preprocessing = Preprocessing(size=(16, 16))

    def encode_pixels(self, pixels: np.ndarray):
        import torch

        colours = torch.from_numpy(pixels).float().mean(dim=(1, 2))
        return torch.cat([colours, torch.full((len(pixels), 1), len(pixels))], dim=1)


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (40, 20), (number, 2 * number, 255 - number))


def examples(train: int = 10, validation: int = 3) -> list[Example]:
    splits = ["train"] * train + ["validation"] * validation
    return [Example(str(i), (f"caption {i}",), picture(i), split) for i, split in enumerate(splits)]


def build(
    folder: Path,
    given: list[Example],
    plan: dict | None = None,
    stop_after: int | None = None,
    keep_shards: bool = False,
):
    """Make a dataset in shards of 4 images, batches of 3; with `stop_after`, stop when so many shards are written."""
    claim_folder(folder)
    writer = DatasetWriter(folder, plan or {"source": {"name": "test"}, "clip": CLIP}, Shards(given, 4))
    writer.begin()
    missing = writer.missing() if not writer.complete else []
    write_shards(writer, missing[:stop_after], FakeEncoder(), CLIP["dim"], 3, 0, Processes())
    if stop_after is not None:
        return None
    if not writer.complete:
        writer.finish({"source": {"name": "test"}, "clip": CLIP, "cleaning": {}}, keep_shards)
    return EmbeddingStore.open(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_caption_gets_the_embedding_of_its_image(tmp_path: Path) -> None:
    """Guards against rows that shift by one where shards, batches or splits end, or an image has more captions."""
    given = examples()
    given[5] = Example("5", ("one", "two", "three"), picture(5), "train")
    store = build(tmp_path, given)
    assert store.splits == ["train", "validation"] and store.info["splits"] == {"train": 12, "validation": 3}
    for split in store.splits:
        ids = [int(i) for i in store.column(split, "image_id")]
        assert np.allclose(store.embeddings(split)[:][:, 0], ids)
        assert [caption for caption in store.captions(split) if caption.startswith("caption")] == [
            f"caption {i}" for i in ids if i != 5
        ]
    assert store.captions("train")[5:8] == ["one", "two", "three"]


def test_embeddings_are_read_without_a_copy(tmp_path: Path) -> None:
    """Guards against a dataset of gigabytes being loaded before the first step."""
    embeddings = build(tmp_path, examples()).embeddings("train")
    assert embeddings.shape == (10, 4) and embeddings.dtype == np.float32
    assert not embeddings[3].flags.owndata and not embeddings[3].flags.writeable


def test_only_splits_that_are_looked_at_have_thumbnails(tmp_path: Path) -> None:
    """Guards against hundreds of megabytes of training thumbnails, and thumbnails that are cut like CLIP's input."""
    given = [Example("a", ("x",), picture(1), "train"), Example("b", ("x", "y"), Image.new("RGB", (900, 450)), "test")]
    store = build(tmp_path, given)
    assert store.column("train", "thumbnail") == [None]
    first, second = store.column("test", "thumbnail")
    assert Image.open(BytesIO(first)).size == (512, 256) and second is None


def test_thumbnails_are_large_where_clip_sees_a_quarter(tmp_path: Path) -> None:
    """Guards against pictures of 270 pixels to rate, which is what a JPEG of 1080 is decoded to for CLIP."""
    picture(1).resize((1080, 1080)).save(tmp_path / "a.jpg")
    store = build(tmp_path / "data", [Example(split, ("x",), tmp_path / "a.jpg", split) for split in ("train", "test")])
    assert Image.open(BytesIO(store.column("test", "thumbnail")[0])).size == (512, 512)
    np.testing.assert_array_equal(store.embeddings("train"), store.embeddings("test"))


# interruption


@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_an_interrupted_run_ends_with_the_same_files(tmp_path: Path, stop_after: int) -> None:
    """Guards against work lost or done twice, and batches that fall differently after a resumption."""
    build(tmp_path / "whole", examples())
    assert build(tmp_path / "stopped", examples(), stop_after=stop_after) is None
    with pytest.raises(UserError, match="begun and not finished; run the same load_data.py command again"):
        EmbeddingStore.open(tmp_path / "stopped")
    build(tmp_path / "stopped", examples())
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_finished_shards_are_not_computed_again(tmp_path: Path) -> None:
    build(tmp_path, examples(), stop_after=2)
    writer = DatasetWriter(tmp_path, {"source": {"name": "test"}, "clip": CLIP}, Shards(examples(), 4))
    assert writer.missing() == ["train-00002.arrow", "validation-00000.arrow"]


def test_a_killed_process_leaves_whole_shards(tmp_path: Path) -> None:
    """Guards against half a file under the name of a whole one: SIGKILL gives no time to tidy up."""
    code = (
        "import sys, time; from pathlib import Path; import test_embeddings as t\n"
        "encode = t.FakeEncoder.encode_pixels\n"
        "t.FakeEncoder.encode_pixels = lambda *args: time.sleep(0.05) or encode(*args)\n"
        "t.build(Path(sys.argv[1]), t.examples(200))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "killed")], env=environment)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "killed" / ".parts").glob("*.arrow"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    build(tmp_path / "killed", examples(200))
    build(tmp_path / "whole", examples(200))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("finished", [False, True])
def test_another_plan_in_the_same_folder_is_refused(tmp_path: Path, finished: bool) -> None:
    """Guards against a dataset that is half of one CLIP and half of another."""
    build(tmp_path, examples(), stop_after=None if finished else 1)
    before = contents(tmp_path)
    other = {"source": {"name": "test"}, "clip": CLIP | {"model": "RN50x4"}}
    with pytest.raises(UserError, match=r"another clip model \(ViT-B/32, now RN50x4\)"):
        build(tmp_path, examples(), plan=other)
    assert contents(tmp_path) == before


# images that cannot be read


def test_unreadable_images_are_skipped_and_listed(tmp_path: Path) -> None:
    """Guards against a zero embedding in place of a broken image, which a model would learn from."""
    given = examples()
    given[0] = Example("0", ("x",), b"broken", "train")
    given[4] = Example("4", ("x", "y"), tmp_path / "gone.jpg", "train")
    given[12] = Example("12", ("x",), b"", "validation")
    store = build(tmp_path / "data", given)
    assert store.info["splits"] == {"train": 8, "validation": 2} and store.info["skipped"] == 3
    assert "0" not in store.column("train", "image_id")
    records = [json.loads(line) for line in (tmp_path / "data" / "skipped.jsonl").read_text().splitlines()]
    assert [record["image"] for record in records] == ["0", str(tmp_path / "gone.jpg"), "12"]
    assert records[1]["error"] == "no such file or directory"


def test_skipped_images_are_listed_once_after_a_resumption(tmp_path: Path) -> None:
    given = examples()
    given[0] = Example("0", ("x",), b"broken", "train")
    build(tmp_path, given, stop_after=2)
    build(tmp_path, given)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 1


def test_a_reason_with_a_name_that_is_not_utf8_can_be_written() -> None:
    [shard] = Shards([Example("0", ("x",), b"", "train")])
    _, skipped = to_rows(shard, [UnreadableImage("\udcff.png is outside the data set")], 4)
    assert skipped == [{"image": "0", "error": r"\udcff.png is outside the data set"}]


def test_an_embedding_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    """Guards against one NaN of an overflowing CLIP turning the whole training into NaN."""
    vectors = [np.full(4, value, np.float32) for value in (1, np.nan, 2)]
    given = [Example(str(i), ("x",), clip_embedding=vector) for i, vector in enumerate(vectors)]
    shards = Shards(given)
    [(shard, embedded)] = embed_shards(shards, None, batch_size=2)
    rows, skipped = to_rows(shard, embedded, 4)
    assert rows.num_rows == 2 and skipped == [{"image": "1", "error": "its embedding is not finite"}]


def test_when_no_image_can_be_read_the_next_run_tries_again(tmp_path: Path) -> None:
    """Guards against a disk that was not mounted spoiling the folder for good."""
    missing = [Example(str(i), ("x",), tmp_path / f"{i}.png", "train") for i in range(3)]
    with pytest.raises(UserError, match="no image to train on could be used .3 skipped; the first, .*0.png: no such"):
        build(tmp_path / "data", missing)
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    assert build(tmp_path / "data", missing).info["splits"] == {"train": 3}


def test_data_for_evaluation_alone_needs_no_training_images(tmp_path: Path) -> None:
    assert build(tmp_path, examples(train=0)).splits == ["validation"]


# opening


def test_identity_is_that_of_the_content(tmp_path: Path) -> None:
    """Guards against checkpoints that claim the same data for different captions, images or CLIP."""
    identities = [build(tmp_path / "a", examples()).identity, build(tmp_path / "b", examples()).identity]
    assert identities[0] == identities[1]
    changed = examples()
    changed[3] = Example("3", ("another caption",), picture(3), "train")
    identities += [build(tmp_path / "c", changed).identity, build(tmp_path / "d", examples(train=9)).identity]
    assert len(set(identities)) == 3


def test_what_is_no_dataset_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        EmbeddingStore.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no dataset; make one with load_data.py"):
        EmbeddingStore.open(tmp_path)
    build(tmp_path / "data", examples())
    (tmp_path / "data" / "validation" / "data.arrow").unlink()
    with pytest.raises(UserError, match="lacks 'validation/data.arrow' of its split 'validation'"):
        EmbeddingStore.open(tmp_path / "data")
    (tmp_path / "data" / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        EmbeddingStore.open(tmp_path / "data")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 3},
        {"format": [1]},
        {"splits": ["train"]},
        {"splits": {"train": "10"}},
        {"splits": {"../data/train": 10}},
        {"splits": {"..": 10}},
        {"clip": None},
        {"clip": {"model": "ViT-B/32"}},
        {"clip": CLIP | {"dim": "4"}},
        {"clip": CLIP | {"dim": 0}},
        {"identity": None},
        {"identity": "\ud800"},
        {"splits": {"train": -1}},
        {"source": None},
        {"source": ["demo"]},
        {"source": {"name": 5}},
        {"clip": CLIP | {"model": ["x"]}},
        {"clip": CLIP | {"pretrained": 1}},
        {"skipped": "x"},
        {"cleaning": [1]},
        {"plan": "x"},
    ],
)
def test_a_description_of_another_shape_is_explained(tmp_path: Path, changes: dict) -> None:
    """Guards against a stranger's dataset that ends in a traceback, or leads out of its folder."""
    build(tmp_path / "data", examples())
    file = tmp_path / "data" / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match="not of format 2, which this version reads"):
        EmbeddingStore.open(tmp_path / "data")
    with pytest.raises(UserError, match="not of format 2, which this version reads"):
        build(tmp_path / "data", examples())


def test_list_of_pictures_of_another_shape_is_explained(tmp_path: Path) -> None:
    from clipcap.data.tables import write_table

    build(tmp_path, examples())
    write_table(tmp_path / "pictures.arrow", pa.table({"x": [1]}))
    with pytest.raises(UserError, match="is damaged or was cut into other shards"):
        DatasetWriter(tmp_path, {"source": {"name": "test"}, "clip": CLIP}, Shards(examples(), 4)).begin()


@pytest.mark.parametrize(
    "content", ["[]", "5", "[" * 100_000, '"' + "\\ud83d" + '"'], ids=["list", "number", "nested", "text"]
)
def test_json_of_another_kind_is_named(tmp_path: Path, content: str) -> None:
    store = build(tmp_path, examples())
    store.save_literal_captions("validation", "a", ["x"] * 3)
    for file in (tmp_path / "literal_captions" / "a" / "validation.json", tmp_path / "dataset.json"):
        file.write_text(content if content != "[]" or file.name != "validation.json" else "{}")
        with pytest.raises(UserError, match=f"{file.name}' cannot be read .*; make the dataset again"):
            store.literal_captions("validation", "a") if file.name == "validation.json" else EmbeddingStore.open(
                tmp_path
            )
    with pytest.raises(UserError, match="dataset.json' cannot be read"):
        build(tmp_path, examples())


@pytest.mark.parametrize("fault", ["another split", "another width", "another dtype", "a column less"])
def test_rows_that_do_not_fit_their_description_are_named(tmp_path: Path, fault: str) -> None:
    """Guards against a traceback hours later, and embeddings of another width read as if they were right."""
    from clipcap.data.tables import read_table, write_table

    build(tmp_path, examples())
    store = EmbeddingStore.open(tmp_path)
    file = tmp_path / "train" / "data.arrow"
    table = read_table(file)
    if fault == "another split":
        table = read_table(tmp_path / "validation" / "data.arrow")
    elif fault == "a column less":
        table = table.drop_columns(["caption"])
    else:
        kind = pa.list_(pa.float64(), 4) if fault == "another dtype" else pa.list_(pa.float32(), 2)
        rows = [row[: kind.list_size] for row in table["clip_embedding"].to_pylist()]
        table = table.set_column(0, "clip_embedding", pa.array(rows, kind))
    write_table(file, table)
    for ask in (store.captions, store.embeddings):
        with pytest.raises(UserError, match="train/data.arrow' does not fit its dataset.json"):
            ask("train")


def rewrite(file: Path, column: str, change) -> None:
    """Write the rows again with other values in a column."""
    from clipcap.data.tables import read_table, write_table

    table = read_table(file)
    kind = table.schema.field(column).type
    shared = pa.types.is_dictionary(kind)
    values = pa.array(change(table[column].to_pylist()), kind.value_type if shared else kind)
    if shared:
        values = pa.DictionaryArray.from_arrays(pa.array(range(len(values)), pa.int32()), values)
    write_table(file, table.set_column(table.column_names.index(column), table.schema.field(column), values))


@pytest.mark.parametrize(
    ("column", "first"),
    [("clip_embedding", None), ("clip_embedding", [1, 2, None, 4]), ("caption", None), ("image_id", None)],
)
def test_rows_that_lack_something_are_named(tmp_path: Path, column: str, first: object) -> None:
    """Guards against a row that is left out of the embeddings alone, so that every later picture has another's."""
    store = build(tmp_path, examples())
    rewrite(tmp_path / "train" / "data.arrow", column, lambda values: [first, *values[1:]])
    for ask in (store.captions, store.embeddings):
        with pytest.raises(UserError, match="train/data.arrow' does not fit its dataset.json"):
            ask("train")


@pytest.mark.parametrize("fault", ["far", "longer", "not UTF-8"])
def test_texts_that_lead_out_of_the_file_are_refused(tmp_path: Path, fault: str) -> None:
    """Guards against a process that ends in a segmentation fault, or shows what lies behind a text."""
    store = build(tmp_path, examples(train=5))
    file = tmp_path / "train" / "data.arrow"
    content = file.read_bytes()
    offsets = np.arange(0, 5 * 9, 9)  # of the first shard's four captions "caption 0", ...
    assert content.count(offsets.tobytes()) == 1
    changed = offsets.copy()
    changed[-1] += 2**40 if fault == "far" else 3000 if fault == "longer" else 0
    content = content.replace(offsets.tobytes(), changed.tobytes())
    file.write_bytes(content.replace(b"caption 3", b"caption\xff3") if fault == "not UTF-8" else content)
    with pytest.raises(UserError, match="train/data.arrow' is missing or damaged"):
        store.captions("train")


def test_pictures_are_thumbnails_or_the_files_that_were_embedded(tmp_path: Path) -> None:
    """Guards against a stranger's dataset that names pictures of this computer, which a report would then show."""
    import torch

    from clipcap.evaluation.held_out import HeldOut

    given = examples(train=5)
    for number, example in enumerate(given[:5]):
        picture(number).save(tmp_path / f"{number}.png")
        given[number] = replace(example, image=tmp_path / f"{number}.png")
    store = build(tmp_path / "data", given)
    held_out = HeldOut(store, "train", None, torch.device("cpu"))
    assert held_out.pictures(2) == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    assert all(Image.open(BytesIO(one)) for one in HeldOut(store, "validation", None, held_out.device).pictures(3))
    (tmp_path / "0.png").unlink()
    picture(9).save(tmp_path / "1.png")
    paths = [str(tmp_path / "0.png"), str(tmp_path / "1.png"), str(tmp_path / "3.png"), "x" * 9000, "a\0b"]
    rewrite(tmp_path / "data" / "train" / "data.arrow", "image_path", lambda _: paths)
    held_out = HeldOut(EmbeddingStore.open(tmp_path / "data"), "train", None, torch.device("cpu"))
    assert held_out.pictures(5) == [None] * 5
    (tmp_path / "data" / "pictures.arrow").unlink()
    assert held_out.pictures(5) == [None] * 5


@pytest.mark.parametrize("thumbnail, told", [(b"junk", "cannot be read"), (None, "nor pictures")])
def test_what_is_no_picture_is_one_sentence_for_another_clip(
    tmp_path: Path, thumbnail: bytes | None, told: str
) -> None:
    from types import SimpleNamespace

    import torch
    from tiny import save_tiny_clip

    from clipcap.evaluation.held_out import HeldOut
    from clipcap.model.config import ClipCapConfig

    store = build(tmp_path / "data", examples())
    rewrite(tmp_path / "data" / "validation" / "data.arrow", "thumbnail", lambda values: [thumbnail] * len(values))
    config = ClipCapConfig(clip_model=str(save_tiny_clip(tmp_path / "clip")), clip_pretrained=None)
    held_out = HeldOut(store, "validation", None, torch.device("cpu"))
    with pytest.raises(UserError, match=told):
        held_out.embeddings(SimpleNamespace(config=config))


def test_the_folder_of_a_dataset_may_have_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    """Guards against a name that is noticed when everything is embedded and is to be joined."""
    store = build(tmp_path / os.fsdecode(b"caf\xe9"), examples(train=5))
    assert store.captions("train") == [f"caption {number}" for number in range(5)]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = build(tmp_path, examples())
    file = tmp_path / "train" / "data.arrow"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="data.arrow' is missing or damaged"):
        store.captions("train")


def test_an_unknown_split_lists_those_that_exist(tmp_path: Path) -> None:
    store = build(tmp_path, examples())
    for ask in (store.captions, store.embeddings):
        with pytest.raises(UserError, match="no split 'test'; it has train, validation: .*--test-fraction above 0"):
            ask("test")
        with pytest.raises(UserError, match="no split 'tset'; it has train, validation$"):
            ask("tset")


def test_an_interrupt_while_embeddings_are_opened_is_not_lost(tmp_path: Path) -> None:
    """Arrow's `to_numpy` imports pandas, for half a second, and drops a Ctrl-C or SIGTERM that comes meanwhile."""
    build(tmp_path, examples())
    code = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "pandas":
            print("interrupted")
            raise KeyboardInterrupt
from clipcap.data.store import EmbeddingStore
sys.meta_path.insert(0, Interrupting())
print(sum(EmbeddingStore.open(sys.argv[1]).embeddings("train")[0]) > 0)
"""
    run = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.stdout != "interrupted\nTrue\n"
    assert "interrupted" in run.stdout or run.stdout == "True\n", run.stderr


def test_literal_captions_are_kept_by_weights_and_split(tmp_path: Path) -> None:
    """Guards against prompts from another captioner, or from another split."""
    store = build(tmp_path, examples())
    assert store.literal_captions("validation", "a" * 64) == []
    for captions in (["one"], ["one", "two 🔥", "three\nlines"]):
        store.save_literal_captions("validation", "a" * 64, captions)
        assert EmbeddingStore.open(tmp_path).literal_captions("validation", "a" * 64) == captions
    assert store.literal_captions("validation", "b" * 64) == store.literal_captions("train", "a" * 64) == []
    with pytest.raises(ValueError, match="4 literal captions for the 3 rows"):
        store.save_literal_captions("validation", "a" * 64, ["x"] * 4)


@pytest.mark.parametrize("captions", [[1, 2, 3], ["a", None, "c"], ["a", "b", "\ud800"], ["a", "b", "c", "d"]])
def test_literal_captions_that_are_no_texts_count_as_not_saved(tmp_path: Path, captions: list) -> None:
    store = build(tmp_path, examples())
    store.save_literal_captions("validation", "a", ["x"] * 3)
    (tmp_path / "literal_captions" / "a" / "validation.json").write_text(json.dumps(captions))
    assert store.literal_captions("validation", "a") == []


@pytest.mark.parametrize("link", ["literal_captions", "literal_captions/a"])
def test_literal_captions_are_not_written_through_a_link(tmp_path: Path, link: str) -> None:
    store = build(tmp_path / "data", examples())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "data" / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link out of the dataset"):
        store.save_literal_captions("validation", "a", ["x"] * 3)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        ({"clip_model": "ViT-B-32"}, None),
        (
            {"clip_model": "RN50x4", "clip_dim": 640},
            r"CLIP ViT-B/32 \(openai, 4 wide\), but the model takes RN50x4 \(openai, 640",
        ),
        ({"clip_pretrained": "laion2b_s34b_b79k"}, "laion2b_s34b_b79k"),
        ({"clip_dim": 512}, "512 wide"),
    ],
)
def test_training_with_another_clip_is_refused(tmp_path: Path, changes: dict, sentence: str | None) -> None:
    """Guards against weights of one CLIP fed with the embeddings of another, of the same width or not."""
    from clipcap.model.config import ClipCapConfig

    config = ClipCapConfig(**({"clip_model": "ViT-B/32", "clip_pretrained": "openai", "clip_dim": 4} | changes))
    store = EmbeddingStore(tmp_path, {"clip": CLIP})
    if sentence is None:
        check_clip(store, config)
    else:
        with pytest.raises(UserError, match=sentence):
            check_clip(store, config)


@pytest.mark.parametrize(("name", "value"), [("dim", 2**31), ("model", "\ud800"), ("model", "\x1b[31m")])
def test_a_clip_that_cannot_be_is_refused(tmp_path: Path, name: str, value: object) -> None:
    """A width beyond 32 bits and half a character were faults of the program, found when the report was written."""
    build(tmp_path, examples())
    info = json.loads((tmp_path / "dataset.json").read_text())
    info["clip"][name] = value
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="is not of format 2"):
        EmbeddingStore.open(tmp_path)


def test_rows_are_read_like_those_of_an_array(tmp_path: Path) -> None:
    """Guards against rows of another part of the file, wherever parts begin, and images with several captions."""
    given = examples(train=11)
    given[6] = replace(given[6], captions=("one", "two"))
    embeddings = build(tmp_path, given).embeddings("train")
    whole = np.asarray(embeddings)
    assert whole.shape == embeddings.shape == (12, 4) and len(embeddings.parts) == 3
    np.testing.assert_array_equal(whole[6], whole[7])
    for rows in (slice(3, 9), slice(None, None, 5), [11, 0, 7, 7], np.array([4]), [], -1):
        np.testing.assert_array_equal(embeddings[rows], whole[rows])
    for rank in range(3):
        share = embeddings.take(range(12)[rank::3])
        assert share.shape == whole[rank::3].shape
        np.testing.assert_array_equal(share[1:3], whole[rank::3][1:3])
    with pytest.raises(IndexError):
        embeddings[12]


def test_a_store_in_shards_is_the_same(tmp_path: Path) -> None:
    joined, kept = (build(tmp_path / name, examples(), keep_shards=name == "kept") for name in ("joined", "kept"))
    assert joined.identity == kept.identity
    for split in joined.splits:
        assert joined.captions(split) == kept.captions(split)
        np.testing.assert_array_equal(joined.embeddings(split), kept.embeddings(split))
    assert not (tmp_path / "kept" / "train").exists() and (tmp_path / "kept" / "shards" / "train-00002.arrow").is_file()
    build(tmp_path / "kept", examples())  # the same again: complete already
    (tmp_path / "kept" / "shards" / "train-00001.arrow").write_bytes(b"half")
    with pytest.raises(UserError, match="train-00001.arrow' is missing or damaged"):
        EmbeddingStore.open(tmp_path / "kept").captions("train")


def test_a_store_in_shards_leaves_no_files_open(tmp_path: Path) -> None:
    """Guards against a million images in shards that are called damaged, since a process may open 1,024 files."""
    resource = pytest.importorskip("resource")
    image = examples()[0]
    build(tmp_path, [replace(image, image_id=str(number)) for number in range(400)], keep_shards=True)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 30, before[1]))
    try:
        store = EmbeddingStore.open(tmp_path)
        embeddings = store.embeddings("train")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert store.info["shards"] == {"train": 100} and len(embeddings) >= 400
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(embeddings))[7:9], embeddings[7:9])


def test_joining_goes_on_after_a_kill_in_its_last_step(tmp_path: Path) -> None:
    """Guards against shards that were renamed and are then neither a dataset nor one that was begun."""
    build(tmp_path, examples(), keep_shards=True)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(UserError, match="was begun and not finished"):
        EmbeddingStore.open(tmp_path)
    assert build(tmp_path, examples(), keep_shards=True).info["shards"] == {"train": 3, "validation": 1}


@pytest.mark.parametrize("shards", [{"train": 3}, {"train": 0, "validation": 1}, {"train": "3", "validation": 1}, [3]])
def test_shards_that_the_description_counts_wrongly_are_refused(tmp_path: Path, shards: object) -> None:
    build(tmp_path, examples(), keep_shards=True)
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shards": shards}))
    with pytest.raises(UserError, match="not of format 2"):
        EmbeddingStore.open(tmp_path)


@pytest.mark.parametrize("left", ["half", "all but its rows", "nothing"])
def test_a_shard_that_is_half_written_costs_itself_alone(tmp_path: Path, left: str) -> None:
    """Guards against advice to make millions of embeddings again, and a file that ends between its schema and rows."""
    build(tmp_path / "whole", examples())
    build(tmp_path / "data", examples(), stop_after=3)
    part = tmp_path / "data" / ".parts" / "train-00001.arrow"
    with pa.memory_map(str(part)) as file:
        assert pa.ipc.open_stream(file).schema
        ends = {"half": part.stat().st_size // 2, "all but its rows": file.tell(), "nothing": 0}
    os.truncate(part, ends[left])
    with pytest.raises(UserError, match=r"train-00001.arrow' is .*; delete it, if it is there, and run the same comm"):
        build(tmp_path / "data", examples())
    part.unlink()
    build(tmp_path / "data", examples())
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_a_shard_of_something_else_is_named(tmp_path: Path) -> None:
    """Guards against a traceback in the last step, hours after whatever has put the file there."""
    from clipcap.data.tables import write_table

    build(tmp_path, examples(), stop_after=2)
    write_table(tmp_path / ".parts" / "train-00001.arrow", pa.table({"x": [1]}))
    with pytest.raises(UserError, match="train-00001.arrow' is no shard of a dataset"):
        build(tmp_path, examples())


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux says how much of a file is mapped")
def test_pages_that_were_read_are_let_go_of(tmp_path: Path, monkeypatch) -> None:
    """Guards against a dataset of gigabytes that stays mapped into the process, read by read, until it is killed."""
    import clipcap.data.embeddings as module

    monkeypatch.setattr(module, "MAPPED", 256)
    width, images = 1024, 6000
    vectors = np.arange(images * width, dtype=np.float32).reshape(images, width)
    given = [Example(str(i), ("x",), clip_embedding=vectors[i]) for i in range(images)]
    writer = DatasetWriter(tmp_path, {}, Shards(given))
    claim_folder(tmp_path)
    writer.begin()
    write_shards(writer, writer.missing(), None, width, 128, 0, Processes())
    writer.finish({"source": {"name": "test"}, "clip": CLIP | {"dim": width}, "cleaning": {}})
    embeddings = EmbeddingStore.open(tmp_path).embeddings("train")

    def mapped() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssFile:")[2].split()[0]) * 1024

    before, most = mapped(), 0
    for start in range(0, images, 32):
        np.testing.assert_array_equal(embeddings[start : start + 32], vectors[start : start + 32])
        most = max(most, mapped() - before)
    assert most < 10e6 < vectors.nbytes
    assert embeddings.unfit(images) is None and mapped() - before < 10e6
