"""The files that ClipCap was trained on: each is read from a small sample, laid out as its own writer lays it out."""

import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_sources import colour_of, draw, listed, png
from tiny import save_tiny_clip

import load_data
from clipcap.clip.encoder import ClipEncoder
from clipcap.data.cleaning import Cleaning
from clipcap.data.selection import select
from clipcap.data.sources import SourceArguments, open_source
from clipcap.data.store import EmbeddingStore
from clipcap.errors import UserError

# Karpathy's dataset_coco.json, ClipCap's train_caption.json


def karpathy_entry(number: int, split: str, *raw: str, **changes: object) -> dict:
    """An image as dataset_coco.json has it."""
    part = "train2014" if split == "train" else "val2014"
    sentences = [
        {"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": 10 * number + place}
        for place, text in enumerate(raw)
    ]
    filename = f"COCO_{part}_{number:012d}.jpg"
    entry = {"filepath": part, "sentids": [], "filename": filename, "imgid": 0, "split": split, "cocoid": number}
    return entry | {"sentences": sentences} | changes


def karpathy(*entries: object) -> str:
    return json.dumps({"images": entries, "dataset": "coco"})


FOUR = karpathy(
    karpathy_entry(9, "train", "A red one.", "One that is red."),
    karpathy_entry(5, "restval", "A green one."),
    karpathy_entry(7, "val", "A blue one."),
    karpathy_entry(8, "test", "Another red one."),
)


def coco_images(folder: Path) -> None:
    draw(folder / "train2014" / "COCO_train2014_000000000009.jpg", "red")
    for number, colour in ((5, "green"), (7, "blue"), (8, "red")):
        draw(folder / "val2014" / f"COCO_val2014_{number:012d}.jpg", colour)


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("dataset_coco.json", ""),
        ("annotations/dataset_coco.json", ""),
        ("annotations/dataset_coco.json", "annotations/dataset_coco.json"),
        ("caption_datasets/dataset_coco.json", "caption_datasets/dataset_coco.json"),
    ],
)
def test_karpathys_splits(tmp_path: Path, where: str, named: str) -> None:
    """Guards against COCO's own splits in place of Karpathy's, by which every paper measures, and a lost restval."""
    coco_images(tmp_path)
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text(FOUR)
    source = open_source(["coco", str(tmp_path / named)])
    assert listed(source) == [
        ("9", ("A red one.", "One that is red."), "train"),
        ("5", ("A green one.",), "train"),
        ("7", ("A blue one.",), "validation"),
        ("8", ("Another red one.",), "test"),
    ]
    assert [colour_of(example) for example in source.examples] == ["red", "green", "blue", "red"]


@pytest.mark.parametrize("file", ["dataset_coco.json", "annotations/captions_train2014.json"])
def test_a_first_picture_that_is_missing_hides_no_other(tmp_path: Path, file: str) -> None:
    """Guards against pictures in images/ that are looked for elsewhere, since the first of all was not downloaded."""
    images = [{"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg"} for number in (1, 9)]
    annotations = [{"image_id": number, "caption": "x"} for number in (1, 9)]
    content = json.dumps({"images": images, "annotations": annotations})
    if file == "dataset_coco.json":
        content = karpathy(*(karpathy_entry(number, "train", "x") for number in (1, 9)))
    (tmp_path / "annotations").mkdir()
    (tmp_path / file).write_text(content)
    there = draw(tmp_path / "images" / "train2014" / "COCO_train2014_000000000009.jpg")
    missing = there.with_name("COCO_train2014_000000000001.jpg")
    assert [example.image for example in open_source(["coco", str(tmp_path)]).examples] == [missing, there]


def test_karpathys_flickr(tmp_path: Path) -> None:
    """His Flickr files name no folder, and no cocoid."""
    entry = karpathy_entry(3, "val", "A dog.", filename="36979.jpg")
    entry = {name: value for name, value in entry.items() if name not in ("filepath", "cocoid")}
    (tmp_path / "dataset_flickr30k.json").write_text(karpathy(entry))
    draw(tmp_path / "images" / "36979.jpg", "blue")
    source = open_source(["coco", str(tmp_path)])
    assert listed(source) == [("36979.jpg", ("A dog.",), "validation")]
    assert colour_of(source.examples[0]) == "blue"


def test_clipcaps_train_captions(tmp_path: Path) -> None:
    """Guards against an image of val2014 that is looked for in train2014 alone, and ids that are texts, as Oscar's."""
    coco_images(tmp_path)
    (tmp_path / "annotations").mkdir()
    captions = [(9, "red"), ("5", "green"), (9, "red again"), (5, "green again")]
    entries = [{"image_id": number, "id": place, "caption": text} for place, (number, text) in enumerate(captions)]
    (tmp_path / "annotations" / "train_caption.json").write_text(json.dumps(entries))
    source = open_source(["coco", str(tmp_path)])
    assert listed(source) == [
        ("9", ("red", "red again"), "train"),
        ("5", ("green", "green again"), "train"),
    ]
    assert [colour_of(example) for example in source.examples] == ["red", "green"]


def test_captions_scattered_over_a_file_share_one_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an image that is embedded once for each of its captions, as `parse_coco.py` does: five times."""
    coco_images(tmp_path / "coco")
    entries = [{"image_id": number, "id": i, "caption": f"caption {i}"} for i, number in enumerate([9, 5, 7, 8] * 5)]
    (tmp_path / "coco" / "train_caption.json").write_text(json.dumps(entries))
    encoded: list[int] = []
    encode = ClipEncoder.encode_pixels
    monkeypatch.setattr(ClipEncoder, "encode_pixels", lambda self, p: encoded.append(len(p)) or encode(self, p))
    argv = ["--source", "coco", str(tmp_path / "coco"), "--clip", str(save_tiny_clip(tmp_path / "clip"))]
    load_data.main([*argv, "--output", str(tmp_path / "data"), "--workers", "0", "--device", "cpu"])
    assert sum(encoded) == 4
    assert EmbeddingStore.open(tmp_path / "data").info["splits"] == {"train": 10, "validation": 5, "test": 5}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (karpathy(), "is not a COCO caption file"),
        ("[]", "is not a COCO caption file"),
        ('{"type": "captions"}', "is not a COCO caption file"),
        (karpathy({"filename": "a.jpg"}), "'images', entry 0 has no list of sentences"),
        (karpathy(7), "'images', entry 0 has no list of sentences"),
        (karpathy(karpathy_entry(1, "train", "x", filename=3)), "entry 0: filename must be a text"),
        (karpathy(karpathy_entry(1, "train", "x", filepath=[1])), "entry 0: filepath must be a text"),
        (karpathy(karpathy_entry(1, "dev", "x")), "has the split 'dev': none of train, restval, val, test"),
        (karpathy(karpathy_entry(1, "train", "x", cocoid=[1])), "entry 0 has an id that is neither"),
        (karpathy(karpathy_entry(1, "train", "x", sentences=[{"raw": {}}])), "the caption must be a text"),
        (karpathy(*[karpathy_entry(1, "train", "x")] * 2), "entry 1: the image '1' comes twice"),
        (karpathy(karpathy_entry(1, "train", "x", filename="../../secret.png")), "leads outside .*--allow-outside"),
        (karpathy(karpathy_entry(1, "train", "x", filepath="/etc", filename="x.png")), "leads outside"),
        ('["a caption"]', "entry 0 has no image_id"),
        ('[{"image_id": 1}]', "entry 0 has no caption"),
        ('[{"image_id": "../1", "caption": "x"}]', "image_id '../1' is no number of a COCO image"),
        (f'[{{"image_id": "{"9" * 5000}", "caption": "x"}}]', "is no number of a COCO image"),
        ('[{"image_id": true, "caption": "x"}]', "neither a number nor a text"),
        ('[{"image_id": -1, "caption": "x"}]', "is no number of a COCO image"),
        ('[{"image_id": 1, "caption": {"text": "x"}}]', "the caption must be a text"),
        ('[{"image_id": 1, "caption": "x"}]', "none of the 1 images of .* not even .*COCO_train2014_000000000001.jpg"),
        (FOUR, "none of the 4 images of .* is there.*: unpack COCO's images in"),
    ],
)
def test_a_caption_file_that_cannot_be_used_is_explained(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "place").mkdir()
    draw(tmp_path / "secret.png")
    (tmp_path / "place" / "captions.json").write_text(content)
    with pytest.raises(UserError, match=sentence) as caught:
        open_source(["coco", str(tmp_path / "place" / "captions.json")])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_images_that_lead_outside_by_a_link_are_refused(tmp_path: Path) -> None:
    """Guards against names that this project makes itself, from a number, and then trusts."""
    hidden = draw(tmp_path / "secret.png")
    (tmp_path / "coco" / "train2014").mkdir(parents=True)
    (tmp_path / "coco" / "train2014" / "COCO_train2014_000000000001.jpg").symlink_to(hidden)
    (tmp_path / "coco" / "train_caption.json").write_text('[{"image_id": 1, "caption": "x"}]')
    with pytest.raises(UserError, match="leads outside .*--allow-outside"):
        open_source(["coco", str(tmp_path / "coco")])
    assert open_source(["coco", str(tmp_path / "coco")], SourceArguments(allow_outside=True)).examples


@pytest.mark.parametrize(
    "other", ["dataset_flickr8k.json", "captions_train2014.json", "annotations/captions_val2014.json"]
)
def test_several_kinds_of_caption_files_are_not_chosen_from_in_silence(tmp_path: Path, other: str) -> None:
    """Guards against Karpathy's folder of three files, and against splits that nobody asked for."""
    coco_images(tmp_path)
    (tmp_path / "annotations").mkdir()
    for name in ("dataset_coco.json", other):
        (tmp_path / name).write_text(FOUR)
    with pytest.raises(UserError, match=rf"has dataset_coco.json and {Path(other).name}.*--source coco .*_coco.json"):
        open_source(["coco", str(tmp_path)])
    assert open_source(["coco", str(tmp_path / "dataset_coco.json")]).examples


def test_an_image_in_two_files_is_refused(tmp_path: Path) -> None:
    """Guards against COCO's files of 2014 and 2017 in one folder: an image would train, and validate as well."""
    coco_images(tmp_path)
    for name in ("train", "val"):
        (tmp_path / f"{name}_caption.json").write_text('[{"image_id": 9, "caption": "x"}]')
    with pytest.raises(UserError, match="has the image '9' twice among train_caption.json, val_caption.json"):
        open_source(["coco", str(tmp_path)])


def test_a_caption_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """Guards against a text of 4 GB that is in memory three times before anything is said."""
    with (tmp_path / "dataset_coco.json").open("wb") as file:
        file.truncate(4 << 30)
    with pytest.raises(UserError, match="no file of at most 1 GiB"):
        open_source(["coco", str(tmp_path)])


# Conceptual Captions

ROWS = [
    ("a red thing", "http://a.example/red.jpg"),
    ('the "green" one', "http://a.example/gone.jpg"),
    ("something blue , # 3", "https://b.example/blue.png?w=1&h=2"),
]


def write_table(file: Path, rows: list[tuple[str, str]], header: bool = False) -> None:
    lines = [("caption", "url")] * header + rows
    file.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def crc(url: str) -> str:
    return str(zlib.crc32(url.encode()) & 0xFFFFFFFF)


def put(file: Path, colour: str) -> None:
    """A picture under any name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(colour))


@pytest.mark.parametrize("given", ["folder", "table"])
@pytest.mark.parametrize("layout", ["parse_conceptual", "download_data"])
def test_a_table_and_its_images(tmp_path: Path, layout: str, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against captions that move up by one where an image is gone, and images without an ending."""
    table = tmp_path / "Train_GCC-training.tsv"
    write_table(table, ROWS)
    write_table(tmp_path / "downloaded_training_report.tsv", [("x", "no address")])
    names = ["train/00000000", "", "train/00000002"]
    if layout == "download_data":
        names = [f"training/{crc(url)}" for _, url in ROWS]
    ending = ".jpg" if layout == "parse_conceptual" else ""
    put(tmp_path / f"{names[0]}{ending}", "red")
    put(tmp_path / f"{names[2]}{ending}", "blue")
    source = open_source(["conceptual", str(table if given == "table" else tmp_path)])
    assert listed(source) == [
        (names[0], ("a red thing",), "train"),
        (names[2], ("something blue , # 3",), "train"),
    ]
    assert [colour_of(example) for example in source.examples] == ["red", "blue"]
    assert "the images of 2 of 3 rows are there" in capsys.readouterr().err


@pytest.mark.parametrize("number", [1, 3])
def test_images_that_arrive_while_they_are_listed_are_one_sentence(tmp_path: Path, number: int) -> None:
    """Guards against an image that gets the caption of the next one: whoever downloads for days begins meanwhile."""
    write_table(tmp_path / "Train_GCC-training.tsv", [*ROWS, ("the last", "http://a.example/last.jpg")])
    for there in (0, 2):
        put(tmp_path / "train" / f"{there:08}.jpg", "red")
    args = SourceArguments(val_fraction=0, test_fraction=0)
    selected, _ = select(open_source(["conceptual", str(tmp_path)]).examples, Cleaning(), args)
    assert [example.captions[0] for example in selected] == ["a red thing", "something blue , # 3"]
    put(tmp_path / "train" / f"{number:08}.jpg", "green")
    with pytest.raises(UserError, match="images were added to the source or taken away .* run the same command again"):
        list(selected)


@pytest.mark.parametrize("given", ["folder", "train table", "no validation table"])
def test_numbers_that_may_be_those_of_validation_are_left_out(
    tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against validation images that are trained on, with captions of others.

    `parse_conceptual.py` puts them in front of train's too, as far as their addresses answer a second time, and maybe
    with other bytes. Its records are not there.
    """
    table = tmp_path / "Train_GCC-training.tsv"
    write_table(table, [*ROWS, ("a white one", "http://d.example/white.jpg")])
    validation = [("a green thing", "http://c.example/green.jpg"), ("a black one", "http://c.example/black.jpg")]
    if given != "no validation table":
        write_table(tmp_path / "Validation_GCC-1.1.0-Validation.tsv", validation)
    put(tmp_path / "val" / "00000001.jpg", "green")
    for number, colour in enumerate(["red", "green", "blue"]):
        put(tmp_path / "train" / f"{number:08}.jpg", colour)
    kept = [("train/00000002", ("something blue , # 3",), "train")]
    if given == "folder":
        kept.append(("val/00000001", ("a black one",), "validation"))
    assert listed(open_source(["conceptual", str(table if given == "train table" else tmp_path)])) == kept
    told = "the images of 1 of 4 rows are there, without 2 whose numbers are below 2: those may be of validation, and"
    assert told in capsys.readouterr().err


def test_an_address_that_comes_again_has_one_example(tmp_path: Path) -> None:
    """Guards against an image that is embedded twice, and one whose name two addresses share by chance."""
    same, chance = "http://a.example/same", ["http://a.example/plumless", "http://a.example/buckeroo"]
    assert crc(chance[0]) == crc(chance[1])
    write_table(
        tmp_path / "train.tsv",
        [("one", same), ("x", chance[0]), ("two", ROWS[0][1]), ("y", chance[1]), ("three", same)],
    )
    for url in (same, chance[0], ROWS[0][1]):
        put(tmp_path / "training" / crc(url), "red")
    captions = [example.captions for example in open_source(["conceptual", str(tmp_path)]).examples]
    assert captions == [("two",), ("one", "three")]


def record(folder: Path, part: str, thread: int, **images: tuple[str, str]) -> None:
    """What a thread of `parse_conceptual.py` remembers of the images that it downloaded."""
    info = {name.strip("_"): {"url": url, "caption": caption} for name, (caption, url) in images.items()}
    content = {"parsed": {url for _, url in images.values()}, "info": info}
    (folder / f"conceptual_{part}_{thread:02d}.pkl").write_bytes(pickle.dumps(content))


def test_the_records_of_parse_conceptual_say_whose_image_it_is(tmp_path: Path) -> None:
    """Guards against its training images paired with the table by number: the first are those of validation.

    On Python 3.11 a name longer than any file may have ended in a traceback.
    """
    write_table(tmp_path / "Train_GCC-training.tsv", ROWS)
    write_table(tmp_path / "Validation_GCC-1.1.0-Validation.tsv", [("a green thing", "http://c.example/green.jpg")])
    record(tmp_path, "val", 0, _00000000=("a green thing", "http://c.example/green.jpg"))
    record(tmp_path, "train", 0, _00000000=("a green thing", "http://c.example/green.jpg"))
    record(tmp_path, "train", 1, _00000002=ROWS[2], _00000007=("gone since", "http://d.example/x"))
    record(tmp_path, "train", 2, **{"a" * 300: ("nowhere", "http://e.example/x")})
    for name, colour in (("val/00000000", "green"), ("train/00000000", "red"), ("train/00000002", "blue")):
        put(tmp_path / f"{name}.jpg", colour)  # red: another answer of the same address
    source = open_source(["conceptual", str(tmp_path)])
    assert listed(source) == [
        ("val/00000000", ("a green thing",), "validation"),
        ("train/00000002", ("something blue , # 3",), "train"),
    ]
    assert [colour_of(example) for example in source.examples] == ["green", "blue"]


@pytest.mark.parametrize("output", ["files", "webdataset"])
def test_what_img2dataset_writes_needs_no_table(tmp_path: Path, output: str) -> None:
    """Guards against advice that leads nowhere: with captions in .txt, `folder` and `tar` read its images."""
    meta = {"url": ROWS[0][1], "caption": "a red thing", "key": "000010002", "status": "success", "width": 256}
    members = {"jpg": png("red"), "txt": b"a red thing", "json": json.dumps(meta, indent=4).encode()}
    (tmp_path / "00001.parquet").write_bytes(b"PAR1")
    (tmp_path / "00001_stats.json").write_text('{"count": 10000, "successes": 1}')
    if output == "files":
        (tmp_path / "00001").mkdir()
        for ending, content in members.items():
            (tmp_path / "00001" / f"000010002.{ending}").write_bytes(content)
        wanted, source = "00001/000010002.jpg", open_source(["folder", str(tmp_path)])
    else:
        with tarfile.open(tmp_path / "00001.tar", "w") as archive:
            for ending, content in members.items():
                member = tarfile.TarInfo(f"000010002.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        wanted, source = "00001.tar/000010002", open_source(["tar", str(tmp_path)])
    assert listed(source) == [(wanted, ("a red thing",), "train")]
    assert [colour_of(example) for example in source.examples] == ["red"]


def only(text: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "cc3m.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())


def with_record(content: object) -> Callable[[Path], None]:
    return lambda folder: (folder / "conceptual_train_00.pkl").write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda folder: None, "has no .tsv of captions and addresses; --source folder reads what img2dataset"),
        (only("a caption\thttp://a.example/1\n"), "no image of .* is there.* img2dataset .* --source folder images"),
        (only("caption\turl\n"), "no image of .* is there"),
        (only(""), "no image of .* is there"),
        (only("a caption\n"), "line 1, is not a caption, a tab and an address: 'a caption'"),
        (only("a\thttp://a.example\n\n"), "line 2, is not a caption, a tab"),
        (only("http://a.example/1\ta caption\n"), "line 1, is not a caption, a tab"),
        (only(b"caf\xe9\thttp://a.example/1\n"), "cc3m.tsv' cannot be read .*utf-8"),
        (only("x" * 200_000), "cc3m.tsv' cannot be read .*a line of 131072 characters or more"),
        (only('"' + "x\n" * 100_000), "cc3m.tsv' cannot be read .*field larger than field limit"),
        (lambda folder: [write_table(folder / f"{name}.tsv", ROWS) for name in "ab"], "several tables of one split"),
        (with_record([1]), "conceptual_train_00.pkl' is no record of parse_conceptual.py"),
        (with_record({"info": {7: {}}}), "image '7', has no name and address"),
        (with_record({"info": {"7": 5}}), "image '7', has no name and address"),
        (with_record({"info": {"7": {"url": "x", "caption": [{}]}}}), "the caption must be a text"),
        (with_record({"info": {"../../secret": {"url": "x", "caption": "x"}}}), "leads outside .*--allow-outside"),
        (with_record({"info": {"/etc/x": {"url": "x", "caption": "x"}}}), "leads outside"),
        (with_record(Path("x")), "holds code .* was not run"),
        (lambda folder: (folder / "cc3m.tsv").symlink_to(folder.parent / "secret"), "leads outside"),
        (lambda folder: (folder / "cc3m.tsv").mkdir(), "cc3m.tsv' cannot be read .it is not a file"),
    ],
)
def test_conceptual_captions_that_cannot_be_used_are_explained(
    tmp_path: Path, build: Callable[[Path], None], sentence: str
) -> None:
    (tmp_path / "secret").write_text("a secret\thttp://a.example/1\n")
    (tmp_path / "place").mkdir()
    build(tmp_path / "place")
    with pytest.raises(UserError, match=sentence) as caught:
        open_source(["conceptual", str(tmp_path / "place")])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_an_image_that_is_a_link_to_outside_is_refused(tmp_path: Path) -> None:
    """Guards against an unpacked archive of images, one of which is a private picture."""
    write_table(tmp_path / "cc3m.tsv", ROWS)
    put(tmp_path.parent / "private.png", "red")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "00000000.jpg").symlink_to(tmp_path.parent / "private.png")
    with pytest.raises(UserError, match="00000000.jpg' leads outside .*--allow-outside"):
        open_source(["conceptual", str(tmp_path)])
    assert open_source(["conceptual", str(tmp_path)], SourceArguments(allow_outside=True)).examples


# the pickles of both parsers


def write_pickle(file: Path, captions: list[dict], embeddings: int) -> Path:
    """Embeddings as ClipCap's parsers keep them; every number of one is its row."""
    rows = torch.arange(float(embeddings))[:, None].expand(embeddings, 512).half().clone()
    file.write_bytes(pickle.dumps({"clip_embedding": rows, "captions": captions}))
    return file


def read_pickle(file: Path) -> list[tuple]:
    """Image, captions, split and row of each example."""
    source = open_source(["clipcap", str(file)])
    rows = [int(example.clip_embedding[0]) for example in source.examples]
    return [(*told, row) for told, row in zip(listed(source), rows, strict=True)]


def test_the_pickle_of_parse_coco(tmp_path: Path) -> None:
    """It embeds an image once for each of its captions; they stay in one split, since they have one image_id."""
    captions = [{"image_id": i, "caption": f"{i} {n}", "clip_embedding": n} for n, i in enumerate([9, 5, 9, 5])]
    assert read_pickle(write_pickle(tmp_path / "oscar_split_ViT-B_32_train.pkl", captions, 4)) == [
        ("9", ("9 0",), "train", 0),
        ("5", ("5 1",), "train", 1),
        ("9", ("9 2",), "train", 2),
        ("5", ("5 3",), "train", 3),
    ]


def test_the_training_pickle_of_parse_conceptual_is_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its training captions count their rows from 0 again, behind the embeddings of validation: each has another's."""
    val = [("green.", "00000000"), ("grey.", "00000001")]
    train = [("green.", "00000000"), ("red.", "00000001"), ("blue.", "00000002")]
    captions = [
        {"caption": caption, "clip_embedding": number, "image_id": name}
        for part in (val, train)
        for number, (caption, name) in enumerate(part)
    ]
    assert read_pickle(write_pickle(tmp_path / "conceptual_clip_ViT-B_32_train.pkl", captions, 5)) == [
        ("val/00000000", ("green.",), "validation", 0),
        ("val/00000001", ("grey.",), "validation", 1),
        ("train/00000001", ("red.",), "train", 3),
        ("train/00000002", ("blue.",), "train", 4),
    ]
    assert "2 captions of validation, 2 for training" in capsys.readouterr().err


@pytest.mark.parametrize("other", [{"caption": ["x"]}, {"image_id": 7}, {"image_id": "a.jpg"}])
def test_only_that_pickle_is_mended(tmp_path: Path, other: dict) -> None:
    """Guards against rows that are moved in a file whose captions do share an embedding."""
    captions = [{"caption": "x", "clip_embedding": 0, "image_id": "00000000"} | other] * 2
    [example] = read_pickle(write_pickle(tmp_path / "ViT-B_32.pkl", captions, 2))
    assert example[1:] == (("x", "x"), "train", 0)
