"""Large sources: listed without a list in memory, and read where they lie, as those that write them lay them out."""

import io
import json
import os
import re
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from local_hub import TOKEN, local_hub, put
from test_sources import colour_of, draw, listed, png
from tiny import save_hub_folder, save_tiny_clip

import load_data
from clipcap.clip.images import UnreadableImage
from clipcap.data import patterns
from clipcap.data.examples import Example, Listing
from clipcap.data.patterns import expand_braces
from clipcap.data.shards import Shards
from clipcap.data.sources import SourceArguments, open_source
from clipcap.data.writer import DatasetWriter
from clipcap.errors import UserError


def reason(example: Example) -> str:
    """Why an image cannot be read."""
    with pytest.raises(UnreadableImage) as caught:
        example.open()()
    return str(caught.value)


# tar shards


def write_img2dataset(folder: Path, shard: int, keys: list[int], whole: bool = True) -> Path:
    """A shard as img2dataset writes it with `--output_format webdataset`, with what lies beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{shard:05d}.tar"
    archive = tarfile.TarFile(file, "w", format=tarfile.USTAR_FORMAT)
    for key in keys:
        name = f"{shard:05d}{key:04d}"
        meta = {"url": f"http://a.example/{key}", "caption": f"caption {name}", "key": name, "status": "success"}
        contents = {"jpg": png("red"), "txt": meta["caption"].encode(), "json": json.dumps(meta, indent=4).encode()}
        for ending, content in contents.items():
            member = tarfile.TarInfo(f"{name}.{ending}")
            member.size, member.uname, member.gname, member.mode = len(content), "bigdata", "bigdata", 0o444
            archive.addfile(member, io.BytesIO(content))
    if whole:
        archive.close()
    archive.fileobj.close()
    failed = {"url": ["http://a.example/x"], "key": [f"{shard:05d}9999"], "status": ["failed_to_download"]}
    pq.write_table(pa.table(failed), folder / f"{shard:05d}.parquet")
    (folder / f"{shard:05d}_stats.json").write_text('{"count": 3, "successes": 2}')
    return file


@pytest.mark.parametrize("place", ["", "*.tar", "*", "{00000..00002}.tar", "0000{0,1,2}.tar", "0000[0-9].t?r", "**"])
def test_tar_shards_by_folder_glob_and_braces(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against images whose names, and so whose splits, depend on how their place was written."""
    for shard in range(3):
        write_img2dataset(tmp_path / "data", shard, [0, 1])
    monkeypatch.chdir(tmp_path)
    source = open_source(["tar", os.path.join("data", place)])
    assert isinstance(source.examples, Listing)
    keys = [
        (f"{shard:05d}.tar/{shard:05d}{key:04d}", f"caption {shard:05d}{key:04d}")
        for shard in range(3)
        for key in (0, 1)
    ]
    assert listed(source) == listed(source) == [(name, (caption,), "train") for name, caption in keys]
    assert source.info["path"] == str(tmp_path / "data" / place)


@pytest.mark.parametrize("place", ["", "{train,val}/*.tar"])
def test_tar_shards_have_the_split_of_their_folder(tmp_path: Path, place: str) -> None:
    """Guards against validation images that are trained on: img2dataset numbers the shards of each folder from 0."""
    write_img2dataset(tmp_path / "train", 0, [0])
    write_img2dataset(tmp_path / "val", 0, [0])
    source = open_source(["tar", os.path.join(tmp_path, place)])
    assert [(name, split) for name, _, split in listed(source)] == [
        ("train/00000.tar/000000000", "train"),
        ("val/00000.tar/000000000", "validation"),
    ]


def test_tar_members_are_in_memory_for_one_shard_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a list of three million examples, and shards that are opened long before their turn."""
    for shard in range(3):
        write_img2dataset(tmp_path, shard, [0, 1])
    opened = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda path, *args: opened.append(Path(path).name) or real(path, *args))
    examples = open_source(["tar", str(tmp_path)]).examples
    assert opened == ["00000.tar"]
    listing = iter(examples)
    assert next(listing) and next(listing) and opened == ["00000.tar"] * 2


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("*.zip", r"zip' matches no .tar files; check"),
        ("{00000..00004}.tar", r"data/00003.tar' is not there.*check the path"),
        ("{x,00001}.tar", r"data/x.tar' is not there"),
        ("{0..999999999}.tar", r"names more than 1,000,000 files; give a folder"),
        ("{0..99999}" * 400, r"names more than 1,000,000 files"),
        ("{a,b}" * 5000, r"names more than 1,000,000 files"),
        ("{" + "9" * 5000 + "..1}.tar", "is not there"),
        ("{{a,b}.tar", r"'\{a.tar' is not there|\{a.tar' is not there"),
        ("../{data,x}/*.tar", r"leads outside .*--allow-outside|matches no"),
        ("[", "matches no"),
        ("none/*.tar", "none.* is not there"),
        ("00000_stats.json/*.tar", "is not a folder"),
        ("link*", r"link.tar' leads outside .*--allow-outside"),
        ("**/*.parquet", "matches no .tar files"),
    ],
)
def test_a_pattern_that_cannot_be_read_is_one_sentence(tmp_path: Path, place: str, sentence: str) -> None:
    """Guards against a shard that is missing in silence, braces that fill the memory, and links to private files."""
    for shard in range(3):
        write_img2dataset(tmp_path / "data", shard, [0])
    (tmp_path / "private.tar").write_bytes(b"")
    (tmp_path / "data" / "link.tar").symlink_to(tmp_path / "private.tar")
    started = time.perf_counter()
    with pytest.raises(UserError, match=sentence) as caught:
        open_source(["tar", f"{tmp_path}/data/{place}"])
    assert time.perf_counter() - started < 3 and "\n" not in str(caught.value) and len(str(caught.value)) < 6000


def test_braces() -> None:
    assert [*expand_braces("{8..11}{a,}.{x}")] == [f"{n}{a}.{{x}}" for n in (8, 9, 10, 11) for a in ("a", "")]
    assert [*expand_braces("{08..11}")] == ["08", "09", "10", "11"] and [*expand_braces("{2..0}")] == ["2", "1", "0"]
    assert patterns.MOST_FILES > 250_000


def test_what_a_mac_packs_beside_files_is_passed_over(tmp_path: Path) -> None:
    """`._a.jpg` and `._a.txt` were pictures and captions of their own, and `._00000.tar` a broken shard."""
    contents = {"a.jpg": png("red"), "a.txt": b"a", "x/b.jpg": png("green"), "x/b.txt": b"b"}
    beside = {re.sub(r"(\w\.)", r"._\1", name): b"\0\5\x16\7" for name in contents}
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for name, content in (beside | contents).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (tmp_path / "._00000.tar").write_bytes(b"\0\5\x16\7")
    expected = [("00000.tar/a", ("a",), "train"), ("00000.tar/x/b", ("b",), "train")]
    assert listed(open_source(["tar", str(tmp_path)])) == expected


def test_a_name_with_braces_that_is_there_is_meant(tmp_path: Path) -> None:
    """Guards against a folder called `photos [2020]` that is taken for a pattern."""
    write_img2dataset(tmp_path / "photos [2020] {a,b}", 0, [0])
    assert len(listed(open_source(["tar", str(tmp_path / "photos [2020] {a,b}")]))) == 1


def test_unquoted_patterns_are_explained() -> None:
    """Guards against 41,455 names in a message: the shell has put them in place of the pattern."""
    with pytest.raises(UserError, match="write --source tar PATH; put a pattern into quotes") as caught:
        open_source(["tar", *(f"{shard:05d}.tar" for shard in range(5000))])
    assert len(str(caught.value)) < 300


def test_a_shard_that_is_still_being_written_is_refused(tmp_path: Path) -> None:
    """Guards against the samples that a shard lacks because img2dataset has not ended, or was killed."""
    write_img2dataset(tmp_path, 0, [0, 1])
    write_img2dataset(tmp_path, 1, [0, 1], whole=False)
    with pytest.raises(UserError, match=r"00001.tar' is damaged or cut off after \d+ bytes"):
        listed(open_source(["tar", str(tmp_path)]))


@pytest.mark.parametrize("what", ["gone", "longer"])
def test_a_shard_that_changes_between_two_passes_is_one_sentence(tmp_path: Path, what: str) -> None:
    """Guards against a dataset whose shards hold other examples than its plan."""
    files = [write_img2dataset(tmp_path, shard, [0]) for shard in range(2)]
    source = open_source(["tar", str(tmp_path)])
    listed(source)
    if what == "gone":
        files[1].unlink()
    else:
        write_img2dataset(tmp_path, 1, [0, 1, 2, 3, 4, 5, 6])
    with pytest.raises(UserError, match=r"00001.tar' changed or went away while .*run the same command again"):
        listed(source)


def test_a_shard_that_vanishes_while_it_is_embedded_is_one_sentence(tmp_path: Path) -> None:
    """Guards against thousands of images that are skipped for good since a drive was gone for a moment."""
    file = write_img2dataset(tmp_path / "data", 0, [0, 1])
    (tmp_path / "out").mkdir()
    writer = DatasetWriter(tmp_path / "out", {}, Shards(open_source(["tar", str(file)]).examples))
    writer.begin()
    [shard] = writer.shards_named(["train-00000.arrow"])
    file.unlink()
    assert "No such file" in reason(shard.examples[0])
    with pytest.raises(UserError, match=r"2 pictures changed or went away .*run the same command again"):
        writer.write(shard, pa.table({}), [])


# the hub's data sets, through `datasets`


def test_a_folder_of_texts_is_listed_anew(tmp_path: Path) -> None:
    """Guards against 2 GB for 3 million images that img2dataset wrote as files."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
        (tmp_path / f"{number}.txt").write_text(f"caption {number}")
    examples = open_source(["folder", str(tmp_path)]).examples
    assert isinstance(examples, Listing)
    assert [example.captions for example in examples] == [(f"caption {number}",) for number in range(3)]


def test_a_hub_data_set_is_listed_by_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against all captions of a data set in one list."""
    from datasets import Dataset

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    save_hub_folder(tmp_path / "data set", {"train": [str(n) for n in range(10, 2300)]}, png("green"))
    sizes = []
    real = Dataset.iter
    monkeypatch.setattr(Dataset, "iter", lambda rows, batch_size: sizes.append(batch_size) or real(rows, batch_size))
    monkeypatch.setattr(Dataset, "__getitem__", None)
    source = open_source(["instagram", str(tmp_path / "data set")])
    assert isinstance(source.examples, Listing)
    assert [example.image_id for example in source.examples] == [str(n) for n in range(10, 2300)] and sizes == [1000]


# parquet files

IMAGE = {"bytes": png("red"), "path": "1.png"}


def write_parquet(file: Path, captions: object = ("a", "b"), image: object = (IMAGE, IMAGE), **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        name: c if isinstance(c, pa.Array) else pa.array(c) for name, c in (("image", image), ("caption", captions))
    }
    pq.write_table(pa.table({"number": range(len(columns["caption"])), **columns}), file, **options)
    return file


def test_parquet_as_datasets_writes_it(tmp_path: Path) -> None:
    """Guards against images joined to the captions of others, and a broken image that ends the listing."""
    folder = save_hub_folder(tmp_path / "x", {"train": ["10", "11", "12"], "test": ["13"]}, png("green"))
    source = open_source(["parquet", str(folder)])
    assert isinstance(source.examples, Listing)
    assert listed(source) == [
        ("data/test-00000-of-00001.parquet/0", ("caption 13",), "test"),
        ("data/train-00000-of-00001.parquet/0", ("caption 10",), "train"),
        ("data/train-00000-of-00001.parquet/1", ("caption 11",), "train"),
        ("data/train-00000-of-00001.parquet/2", ("",), "train"),
    ]
    examples = [*source.examples]
    assert [colour_of(examples[n]) for n in (0, 1, 3)] == ["green"] * 3 and examples[2].open() == b"broken"
    assert examples[0].origin == folder / "data" / "test-00000-of-00001.parquet"


def test_parquet_as_img2dataset_writes_it(tmp_path: Path) -> None:
    """Its images are plain bytes in the column jpg; where a download failed there are none, nor a caption."""
    columns = {
        "url": ["http://a.example/0", "http://a.example/1"],
        "key": ["000000000", "000000001"],
        "status": ["success", "failed_to_download"],
        "caption": ["a red thing", "gone"],
        "jpg": pa.array([png("red"), None], pa.binary()),
        "txt": ["a red thing", None],
    }
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    with pytest.raises(UserError, match="no column 'image'; it has url, key, .*jpg, txt; name another --image-column"):
        open_source(["parquet", str(tmp_path)])
    options = SourceArguments(image_column="jpg", caption_column="txt")
    first, second = open_source(["parquet", f"{tmp_path}/*.parquet"], options).examples
    assert colour_of(first) == "red" and first.captions == ("a red thing",)
    assert second.captions == ("",) and second.open() == b""


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00010.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "validation"),
        ("test/0000.parquet", "test"),
        ("default/partial-test/0000.parquet", "test"),
        ("val2017/part.parquet", "validation"),
        ("test/train-0.parquet", "train"),
        ("00000.parquet", "train"),
    ],
)
def test_the_split_is_in_the_name(tmp_path: Path, name: str, split: str) -> None:
    """Guards against test images that are trained on."""
    write_parquet(tmp_path / name)
    assert {example.split for example in open_source(["parquet", str(tmp_path)]).examples} == {split}


def test_each_row_group_is_read_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a row group that is decoded again for each of its images, and several in memory."""
    images = [png(colour) for colour in ("red", "green", "blue")] * 4
    for name in ("a", "b"):
        write_parquet(tmp_path / f"{name}.parquet", ["x"] * 12, pa.array(images), row_group_size=5)
    examples = [*open_source(["parquet", str(tmp_path)]).examples]
    read = []
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda *args, **options: read.extend(options["row_groups"]) or real(*args, **options),
    )
    assert [colour_of(example) for example in examples] == ["red", "green", "blue"] * 8
    assert read == [0, 1, 2] * 2


@pytest.mark.parametrize("column", ["large_binary", "dictionary", "list of captions"])
def test_other_types_that_hold_the_same(tmp_path: Path, column: str) -> None:
    captions, image = pa.array(["a", None]), pa.array([png("red"), png("blue")])
    if column == "large_binary":
        image = image.cast(pa.large_binary())
    elif column == "dictionary":
        captions = captions.dictionary_encode()
    else:
        captions = pa.array([["a", "b"], []])
    write_parquet(tmp_path / "x.parquet", captions, image)
    examples = [*open_source(["parquet", str(tmp_path)]).examples]
    expected = [("a", "b"), ()] if column == "list of captions" else [("a",), ("",)]
    assert [e.captions for e in examples] == expected and [colour_of(e) for e in examples] == ["red", "blue"]


@pytest.mark.parametrize("way", ["inside", "outside", "absolute", "link"])
def test_paths_in_rows_stay_inside(tmp_path: Path, way: str) -> None:
    """Guards against rows of a stranger that put private pictures into a dataset."""
    draw(tmp_path / "secret.png")
    draw(tmp_path / "place" / "images" / "1.png")
    (tmp_path / "place" / "link.png").symlink_to(tmp_path / "secret.png")
    paths = {"inside": "images/1.png", "outside": "../secret.png", "absolute": str(tmp_path / "secret.png")}
    path = paths.get(way, "link.png")
    image = pa.array([{"bytes": None, "path": path}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    write_parquet(tmp_path / "place" / "x.parquet", ["a"], image)
    [example] = open_source(["parquet", str(tmp_path / "place")]).examples
    if way == "inside":
        assert colour_of(example) == "red"
    else:
        assert "outside the data set; --allow-outside" in reason(example)
        [example] = open_source(["parquet", str(tmp_path / "place")], SourceArguments(allow_outside=True)).examples
        assert colour_of(example) == "red"


def cut(place: Path) -> None:
    file = write_parquet(place / "x.parquet")
    file.write_bytes(file.read_bytes()[:-20])


def damaged(place: Path) -> None:
    """Captions that cannot be read under a footer that can."""
    file = write_parquet(place / "x.parquet", ["some words"] * 2, compression="none", use_dictionary=False)
    content = file.read_bytes()
    at = content.index(b"\n\0\0\0some words")
    file.write_bytes(content[:at] + b"\xff\xff\xff\x7f" + content[at + 4 :])


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda place: None, "has no .parquet files"),
        (lambda place: (place / "x.parquet").write_bytes(b""), "x.parquet' cannot be read as parquet .*get it again"),
        (lambda place: (place / "x.parquet").write_bytes(b"PAR1"), "x.parquet' cannot be read as parquet"),
        (
            lambda place: (place / "x.parquet").write_bytes(b"PAR1" + b"\xff" * 4000 + b"PAR1"),
            "cannot be read as parquet",
        ),
        (cut, "x.parquet' cannot be read as parquet"),
        (damaged, "x.parquet' cannot be read as parquet"),
        (lambda place: os.mkfifo(place / "x.parquet"), "x.parquet' cannot be read as parquet .it is not a file"),
        (lambda place: (place / "x.parquet").symlink_to(place.parent / "y.parquet"), "leads outside .*--allow-outside"),
        (
            lambda place: write_parquet(place / "x.parquet", pa.array([], pa.string()), pa.array([], pa.binary())),
            "no rows",
        ),
        (
            lambda place: pq.write_table(pa.table({"a": [1]}), place / "x.parquet"),
            "has no column 'image'; it has a; name",
        ),
        (
            lambda place: pq.write_table(
                pa.table([[b""], [b""], ["x"]], ["image", "image", "caption"]), place / "x.parquet"
            ),
            "has several columns 'image'",
        ),
        (lambda place: write_parquet(place / "x.parquet", image=[1, 2]), "column 'image' of .* holds no images; name"),
        (lambda place: write_parquet(place / "x.parquet", image=["1.png"] * 2), "column 'image' of .* holds no images"),
        (lambda place: write_parquet(place / "x.parquet", image=[{"path": "x"}] * 2), "'image' of .* holds no images"),
        (lambda place: write_parquet(place / "x.parquet", image=[{"bytes": 1}] * 2), "'image' of .* holds no images"),
        (
            lambda place: write_parquet(place / "x.parquet", [{"raw": "x"}] * 2),
            "row 0: the caption must be a text, not an",
        ),
        (lambda place: write_parquet(place / "x.parquet", [[["x"]]] * 2), "row 0: the caption must be a text"),
        (
            lambda place: write_parquet(place / "x.parquet", [b"\xff"] * 2),
            "row 0: the caption must be a text, not bytes",
        ),
        (lambda place: write_parquet(place / "x.parquet", [True] * 2), "row 0: the caption must be a text"),
    ],
)
def test_parquet_that_cannot_be_used_is_one_sentence(tmp_path: Path, build: object, sentence: str) -> None:
    write_parquet(tmp_path / "y.parquet")
    (tmp_path / "place").mkdir()
    build(tmp_path / "place")
    with pytest.raises(UserError, match=sentence) as caught:
        listed(open_source(["parquet", str(tmp_path / "place")]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_row_group_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against `pandas.to_parquet`, which puts all images into one row group, and against claims in a footer."""
    monkeypatch.setattr("clipcap.data.parquet.MOST_BYTES", 3000)
    write_parquet(tmp_path / "x.parquet", ["x"] * 40, [b"x" * 100] * 40, row_group_size=20, use_dictionary=False)
    assert len(listed(open_source(["parquet", str(tmp_path)]))) == 40
    write_parquet(tmp_path / "x.parquet", ["x"] * 40, [b"x" * 100] * 40, use_dictionary=False)
    with pytest.raises(UserError, match="row group 0 of .* has a column of over .* GB.* row groups of 100 rows"):
        open_source(["parquet", str(tmp_path)])
    write_parquet(tmp_path / "x.parquet", ["x"] * 200, [b"x" * 100] * 200)  # once in the file, and 200 times in memory
    [*examples] = open_source(["parquet", str(tmp_path)]).examples
    with pytest.raises(UserError, match="row group 0 of .* has a column of over .* GB"):
        examples[0].open()


@pytest.mark.parametrize("column", ["caption", "image"])
def test_what_a_small_file_repeats_is_not_in_memory_a_thousand_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    """A file of a kilobyte, whose rows all have the same 8 MB of one letter, took 8 GB and minutes."""
    monkeypatch.setattr("clipcap.data.parquet.MOST_BYTES", 64 << 20)
    large = {"caption": "a" * (8 << 20), "image": b"a" * (8 << 20)}
    columns = {
        name: pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([large[column]]))
        if name == column
        else pa.array([b"x" if name == "image" else "x"] * 100)
        for name in large
    }
    pq.write_table(
        pa.table(columns),
        tmp_path / "x.parquet",
        compression="zstd",
        dictionary_pagesize_limit=1 << 30,
        store_schema=False,
        write_batch_size=9,
    )
    assert (tmp_path / "x.parquet").stat().st_size < 20_000
    sizes: list[int] = []
    read = pq.ParquetFile.iter_batches

    def watched(*args: object, **options: object):
        for batch in read(*args, **options):
            sizes.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    sentence = (
        "caption has 8,388,608 characters, and at most 1,000,000" if column == "caption" else "has a column of over"
    )
    with pytest.raises(UserError, match=sentence):
        [example.open() for example in open_source(["parquet", str(tmp_path)]).examples]
    assert max(sizes) <= 9 << 20


def test_a_damaged_row_group_costs_its_images_alone(tmp_path: Path) -> None:
    images = [{"bytes": png(colour), "path": None} for colour in ("red", "green", "blue")]
    file = write_parquet(tmp_path / "x.parquet", ["x"] * 3, images, row_group_size=1, compression="zstd")
    second = pq.ParquetFile(file).metadata.row_group(1).column(1)
    content = bytearray(file.read_bytes())
    start = second.dictionary_page_offset or second.data_page_offset
    content[start : start + second.total_compressed_size] = b"\xff" * second.total_compressed_size
    file.write_bytes(content)
    first, broken, last = open_source(["parquet", str(tmp_path)]).examples
    assert reason(broken) and [colour_of(first), colour_of(last)] == ["red", "blue"]


# parquet files of the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("clipcap.data.remote.WAITS", (0, 0))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with local_hub(monkeypatch, tmp_path / "hub") as hub:
        yield hub


def pictures(tmp_path: Path, rows: int = 250) -> dict[str, bytes]:
    """A data set of incompressible pictures as `datasets` writes it."""
    image = [{"bytes": os.urandom(2000), "path": f"{row}.png"} for row in range(rows)]
    file = write_parquet(tmp_path / "x.parquet", [f"caption {row}" for row in range(rows)], image, row_group_size=100)
    return {"README.md": b"# pictures", "data/train-00000-of-00001.parquet": file.read_bytes()}


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "named", ["/**/*.parquet", "../other/*", "http://127.0.0.1:9/x.parquet", "hf://datasets/a/b/x"]
)
def test_a_data_set_of_the_hub_that_names_other_places_is_refused(
    hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, named: str
) -> None:
    """A stranger's README.md on the hub made `datasets` read tables of this machine, and ask any server."""
    content = f'configs:\n- config_name: default\n  data_files: "{named}"\n'
    described = {file: (f"---\n{content}---\n" if file == "README.md" else content).encode()}
    put(hub, "jane/pictures", pictures(tmp_path, 2) | described)
    monkeypatch.setattr("datasets.load_dataset_builder", None)
    with pytest.raises(UserError, match="'jane/pictures' names '.*, which is outside of it; give --allow-outside"):
        open_source(["hub", "jane/pictures"])


def test_a_data_set_of_the_hub_is_downloaded_whole_and_stays(hub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.address)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    put(hub, "jane/pictures", pictures(tmp_path, 20))
    before = listed(open_source(["hub", "jane/pictures"]))
    assert before[19] == ("train/19", ("caption 19",), "train")
    hub.stop()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert listed(open_source(["hub", "jane/pictures"])) == before


def test_a_data_set_is_downloaded_at_the_commit_that_was_checked(hub, tmp_path: Path, monkeypatch) -> None:
    """Guards against a README.md that changes between the check and the download."""
    commit = put(hub, "jane/pictures", pictures(tmp_path, 2))
    config = SimpleNamespace(data_files={"train": [f"hf://datasets/jane/pictures@{commit}/data/x.parquet"]})
    monkeypatch.setattr("datasets.load_dataset_builder", lambda path, revision: SimpleNamespace(config=config))
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr("datasets.load_dataset", lambda path, revision: asked.append((path, revision)) or {})
    open_source(["hub", "jane/pictures"])
    assert asked == [("jane/pictures", commit)]
    config.data_files["train"].append("/private/x.parquet")
    with pytest.raises(UserError, match="names '/private/x.parquet', which is outside of it"):
        open_source(["hub", "jane/pictures"])


def asked_once(ranges: list[str | None], most: int) -> bool:
    """Whether no more ranges were read than these; pyarrow 18 and 21 read some in two parts, and 26 does not."""
    count = sum(map(bool, ranges))
    return count == most or (int(pa.__version__.partition(".")[0]) < 26 and count < 2 * most)


def test_the_hub_is_read_by_ranges(hub, tmp_path: Path) -> None:
    """Guards against a data set that is downloaded whole, and captions that the network is asked for in each pass."""
    files = pictures(tmp_path)
    commit = put(hub, "jane/pictures", files, private=True)
    content = files["data/train-00000-of-00001.parquet"]
    source = open_source(["parquet", "hf:jane/pictures"])
    assert source.info["path"] == f"hf:jane/pictures@{commit}"
    before = listed(source)
    assert before[249] == ("data/train-00000-of-00001.parquet/249", ("caption 249",), "train")
    asked = [tuple(map(int, told.removeprefix("bytes=").split("-"))) for told in hub.ranges if told]
    assert sum(last - first + 1 for first, last in asked) < len(content) / 4 and not (tmp_path / "hub").exists()
    count = len(hub.asked)
    assert listed(source) == before and len(hub.asked) == count
    examples = [*source.examples]
    expected = pq.read_table(io.BytesIO(content))["image"].to_pylist()
    assert [example.open() for example in examples] == [image["bytes"] for image in expected]
    assert asked_once(hub.ranges[count:], 1 + 3)  # the footer, and the images of each row group


def test_a_dataset_made_from_the_hub(hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a commit that moves on under a dataset that has been begun, and images that are hashed again."""
    folder = save_hub_folder(tmp_path / "x", {"train": ["10", "12", "14", "15"], "test": ["13"]}, png("green"))
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.parquet")}
    commit = put(hub, "jane/pictures", files)
    command = ["--clip", str(save_tiny_clip(tmp_path / "clip")), "--output", str(tmp_path / "out"), "--workers", "0"]
    load_data.main(["--source", "parquet", "hf:jane/pictures", *command])
    assert "train 2, validation 1, test 1 captions" in capsys.readouterr().out
    assert asked_once(hub.ranges, 2 * 4)  # footer and captions of each file; footer and images
    put(hub, "jane/pictures", {"README.md": b"new"})
    with pytest.raises(UserError, match=rf"another source path .*@{commit}, now hf:jane/pictures@"):
        load_data.main(["--source", "parquet", "hf:jane/pictures", *command])
    load_data.main(["--source", "parquet", f"hf:jane/pictures@{commit}", *command])
    assert "complete already" in capsys.readouterr().err


@pytest.mark.parametrize("trouble", ["silent", 500, 429, 408])
def test_a_connection_that_breaks_is_tried_again(hub, tmp_path: Path, monkeypatch, capsys, trouble: object) -> None:
    """Guards against hours of work that end, or images that are skipped for good, because the hub paused.

    "Too many requests" and "request timeout" were taken for final.
    """
    put(hub, "jane/pictures", pictures(tmp_path))
    examples = [*open_source(["parquet", "hf:jane/pictures"]).examples]
    assert len(examples[0].open()) == 2000
    hub.trouble, hub.troubled = trouble, ".*/resolve/.*"
    waits = SimpleNamespace(sleep=lambda seconds: setattr(hub, "trouble", None))
    monkeypatch.setattr("clipcap.data.remote.time", waits)  # and not for the hub's client, which tries again too
    constants.HF_HUB_OFFLINE = trouble == "silent"  # as after a silence
    assert len(examples[150].open()) == 2000 and not constants.HF_HUB_OFFLINE
    assert "note: the hub broke off" in capsys.readouterr().err


@pytest.mark.parametrize("trouble", [500, 403, "short"])
def test_a_hub_that_stays_away_is_one_sentence(hub, tmp_path: Path, trouble: object) -> None:
    """Guards against thousands of pictures in skipped.jsonl that are there, and a traceback of the HTTP client."""
    put(hub, "jane/pictures", pictures(tmp_path))
    examples = [*open_source(["parquet", "hf:jane/pictures"]).examples]
    hub.trouble, hub.troubled = trouble, ".*/resolve/.*"
    with pytest.raises(UserError, match="could not be read from the hub .*run the same command again to go on"):
        examples[150].open()


def test_a_server_that_knows_no_ranges_is_refused_at_once(hub, tmp_path: Path, capsys) -> None:
    """Guards against files that are downloaded whole into memory, four times."""
    put(hub, "jane/pictures", pictures(tmp_path))
    examples = [*open_source(["parquet", "hf:jane/pictures"]).examples]
    before, hub.trouble = len(hub.asked), "whole"
    with pytest.raises(UserError, match=r"comes whole, not by ranges, .*: download the data set, and give"):
        examples[150].open()
    assert len(hub.asked) == before + 1 and "note" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config1", "data"])
def test_one_of_several_data_sets_is_chosen(hub, tmp_path: Path, name: str) -> None:
    """Guards against configurations of one repository that are mixed in silence."""
    content = pictures(tmp_path, 2)["data/train-00000-of-00001.parquet"]
    put(
        hub,
        "jane/many",
        {f"{part}/{split}-0.parquet": content for part in ("config1", "data") for split in ("train", "test")},
    )
    with pytest.raises(UserError, match=r"several data sets \(config1, data\): .*hf:jane/many/config1/\*"):
        open_source(["parquet", "hf:jane/many"])
    assert len(listed(open_source(["parquet", f"hf:jane/many/{name}/*"]))) == 4
    assert len(listed(open_source(["parquet", f"hf:jane/many@main/{name}/{{train,test}}-*"]))) == 4
    with pytest.raises(UserError, match="matches none of the .parquet files of jane/many"):
        open_source(["parquet", "hf:jane/many/x*"])


def test_what_the_hub_made_of_other_formats(hub, tmp_path: Path) -> None:
    content = pictures(tmp_path, 2)["data/train-00000-of-00001.parquet"]
    put(hub, "jane/zips", {"images.zip": b""})
    with pytest.raises(UserError, match="hf:jane/zips has no .parquet files; --source hub"):
        open_source(["parquet", "hf:jane/zips"])
    repository = hub.repositories["jane/zips"]
    repository["commits"]["c" * 40] = {"default/partial-test/0000.parquet": content, "../../x.parquet": b""}
    repository["branches"]["refs/convert/parquet"] = "c" * 40
    source = open_source(["parquet", "hf:jane/zips"])
    assert source.info["path"] == "hf:jane/zips@" + "c" * 40
    assert [told[2] for told in listed(source)] == ["test", "test"]


def test_paths_in_rows_on_the_hub_are_never_opened(hub, tmp_path: Path) -> None:
    """Guards against a stranger's rows that name files of this computer."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    image = pa.array([{"bytes": None, "path": str(draw(tmp_path / "secret.png"))}], kind)
    put(hub, "jane/x", {"x.parquet": write_parquet(tmp_path / "x.parquet", ["a"], image).read_bytes()})
    [example] = open_source(["parquet", "hf:jane/x"], SourceArguments(allow_outside=True)).examples
    assert example.open() == b""


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("hf:jane", "write hf:owner/name"),
        ("hf:jane/x y", "write hf:owner/name"),
        ("hf://datasets/jane/x", "write hf:owner/name"),
        ("hf:jane/nothing", "has no repository jane/nothing, or it is private"),
        ("hf:jane/secret", "has no repository jane/secret, or it is private"),
        ("hf:jane/gated", "jane/gated is gated"),
        ("hf:jane/broken@v2", "has no revision 'v2'"),
        ("hf:jane/broken", "'x.parquet' of hf:jane/broken@.* cannot be read as parquet"),
        ("hf:jane/broken/{0..999999999}", "names more than"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(hub, place: str, sentence: str, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}_of_another")
    put(hub, "jane/secret", {"x.parquet": b""}, private=True)
    put(hub, "jane/gated", {"x.parquet": b""}, gated=True)
    put(hub, "jane/broken", {"x.parquet": b"PAR1" * 100})
    with pytest.raises(UserError, match=sentence) as caught:
        open_source(["parquet", place])
    assert "\n" not in str(caught.value)


def test_without_a_network_the_hub_is_out_of_reach() -> None:
    """(The tests run offline.)"""
    with pytest.raises(UserError, match="is out of reach, and hf:jane/pictures is read from there: go online"):
        open_source(["parquet", "hf:jane/pictures"])
