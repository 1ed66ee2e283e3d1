"""Sources: each lists the right captions for the right image, and says in one sentence what is wrong with its place."""

import io
import json
import pickle
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image
from tiny import save_hub_folder

from clipcap.clip.images import open_image
from clipcap.data.examples import Example, Source, carve_splits, limit_examples, split_name, split_of
from clipcap.data.sources import SOURCES, SourceArguments, open_source
from clipcap.errors import UserError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def draw(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), COLOURS[colour]).save(path)
    return path


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


def listed(source: Source) -> list[tuple[str, tuple[str, ...], str]]:
    return [(example.image_id, example.captions, example.split) for example in source.examples]


def colour_of(example: Example) -> str:
    pixel = open_image(example.open()).getpixel((5, 5))
    return min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(pixel, COLOURS[name], strict=True)))


def test_every_source_is_reachable_and_an_unknown_one_lists_them() -> None:
    """Guards against a source that is registered under a name nobody can learn."""
    with pytest.raises(UserError, match="unknown source 'flickr'.*" + ", ".join(SOURCES)):
        open_source(["flickr"])


@pytest.mark.parametrize("words", [["folder"], ["demo", "here"], ["folder", "a", "b"], ["clipcap"]])
def test_a_missing_or_surplus_word_is_explained(words: list[str]) -> None:
    with pytest.raises(UserError, match=f"write --source {words[0]}"):
        open_source(words)


# folder


def test_folder_with_metadata(tmp_path: Path) -> None:
    """Guards against captions cut at U+2028 (json leaves it raw), and against embedding an image once per caption."""
    rows = [
        {"file_name": "a.png", "caption": "one\u2028two"},
        {"file_name": "val/b.png", "captions": ["three", "four"]},
        {"file_name": "c.png", "text": "five", "split": "test"},
        {"file_name": "a.png", "caption": "six"},
    ]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "metadata.jsonl").write_text(lines, encoding="utf-8")
    draw(tmp_path / "a.png", "green")
    source = open_source(["folder", str(tmp_path)])
    assert listed(source) == [
        ("a.png", ("one\u2028two", "six"), "train"),
        ("val/b.png", ("three", "four"), "validation"),
        ("c.png", ("five",), "test"),
    ]
    assert colour_of(source.examples[0]) == "green"


def test_folder_with_csv(tmp_path: Path) -> None:
    """Guards against spreadsheets' byte-order mark and captions of several lines."""
    text = 'image,caption\na.png,"first\nsecond, ""quoted"""\na.png,other\n'
    (tmp_path / "captions.csv").write_text(text, encoding="utf-8-sig")
    assert listed(open_source(["folder", str(tmp_path)])) == [
        ("a.png", ('first\nsecond, "quoted"', "other"), "train"),
    ]


def test_folder_with_text_files(tmp_path: Path) -> None:
    """Guards against images without a text being lost from sight, and subfolders that name splits being ignored."""
    for name in ("train/a.jpg", "test/b.jpg", "c.jpg", "d.jpg"):
        draw(tmp_path / name).with_suffix(".txt").write_text(f"caption of {name} 🔥\nsecond line", encoding="utf-8")
    (tmp_path / "d.txt").unlink()
    assert sorted(listed(open_source(["folder", str(tmp_path)]))) == [
        ("c.jpg", ("caption of c.jpg 🔥\nsecond line",), "train"),
        ("d.jpg", (), "train"),
        ("test/b.jpg", ("caption of test/b.jpg 🔥\nsecond line",), "test"),
        ("train/a.jpg", ("caption of train/a.jpg 🔥\nsecond line",), "train"),
    ]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Val2014", "validation"),
        ("test_1", "test"),
        ("val-images", "validation"),
        ("Test set", "test"),
        ("Val d'Isère 2024", "train"),
        ("Test shots", "train"),
        ("2", "train"),
    ],
)
def test_only_the_whole_name_of_a_subfolder_makes_it_a_split(tmp_path: Path, name: str, split: str) -> None:
    """Holidays in Val d'Isère became the validation split, with a table and without."""
    draw(tmp_path / name / "a.jpg").with_suffix(".txt").write_text("x")
    assert listed(open_source(["folder", str(tmp_path)])) == [(f"{name}/a.jpg", ("x",), split)]
    (tmp_path / "captions.csv").write_text(f"image,caption,split\n{name}/a.jpg,x,\n{name}/b.jpg,x, test \n")
    assert [told[2] for told in listed(open_source(["folder", str(tmp_path)]))] == [split, "test"]


def test_a_picture_of_the_longest_name_may_lack_its_text(tmp_path: Path) -> None:
    """On Python 3.11 the name of its text, four bytes longer than any name may be, ended the run in a traceback."""
    draw(tmp_path / f"{'a' * 248}.jpg")
    draw(tmp_path / f"{'b' * 248}.jpg").with_suffix(".txt").write_text("b")
    assert sorted(told[1] for told in listed(open_source(["folder", str(tmp_path)]))) == [(), ("b",)]


@pytest.mark.parametrize("file", ["metadata.jsonl", "captions.csv"])
def test_a_name_that_comes_twice_is_found_at_once(tmp_path: Path, file: str) -> None:
    """Of 300,000 names it took hours to find the one that comes twice."""
    names = [*map(str, range(20_000)), "19999"]
    cells = ",".join(f'"{name}":0' if file == "metadata.jsonl" else name for name in names)
    (tmp_path / file).write_text(f"{{{cells}}}" if file == "metadata.jsonl" else cells)
    start = time.process_time()
    with pytest.raises(UserError, match="'19999' twice"):
        open_source(["folder", str(tmp_path)])
    assert time.process_time() - start < 2


def test_text_that_bears_the_whole_name_of_a_picture_is_its_own(tmp_path: Path) -> None:
    """`predict.py --sidecar` writes such names where two pictures differ in their ending alone."""
    for name in ("a.jpg", "a.png"):
        draw(tmp_path / name).with_name(f"{name}.txt").write_text(f"caption of {name}", encoding="utf-8")
    (tmp_path / "a.txt").write_text("of nobody", encoding="utf-8")
    assert sorted(listed(open_source(["folder", str(tmp_path)]))) == [
        ("a.jpg", ("caption of a.jpg",), "train"),
        ("a.png", ("caption of a.png",), "train"),
    ]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "no images"),
        ({"a.jpg": b"", "b.txt": b"x"}, "no captions"),
        ({"a.jpg": b"", "a.txt": b"caf\xe9"}, "not UTF-8"),
        ({"metadata.jsonl": b""}, "no images in its metadata.jsonl"),
        ({"metadata.jsonl": b'{"file_name": "a"}\n'}, "line 1, has no column caption or .*it has file_name"),
        ({"metadata.jsonl": b'{"file_name": "a", "caption": "b"}\n{"file'}, "line 2, is not JSON"),
        ({"metadata.jsonl": b"[1]\n"}, "line 1, is not a JSON object"),
        ({"captions.csv": b"picture,caption\na,b\n"}, "line 2, has no column file_name or .*it has picture, caption"),
        *(
            (
                {"captions.csv": f"image,caption,split\na,b, test\nc,d,{name}\n".encode()},
                f"line 3, has the split '{name}'",
            )
            for name in ("holdout", "2_test", " ")
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_explained(tmp_path: Path, files: dict, sentence: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        open_source(["folder", str(tmp_path)])


@pytest.mark.parametrize("name", ["folder", "coco", "tar", "clipcap"])
def test_a_place_that_does_not_exist_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="nowhere"):
        open_source([name, str(tmp_path / "nowhere")])


# COCO, tar shards


@pytest.mark.parametrize("images", ["val2017", "images/val2017", "images", "."])
def test_coco(tmp_path: Path, images: str) -> None:
    """Guards against captions joined to the wrong image, and layouts of the unpacked archives that are not found."""
    for number, colour in ((7, "red"), (9, "blue")):
        draw(tmp_path / images / f"{number:04d}.png", colour)
    content = {
        "images": [{"id": 9, "file_name": "0009.png"}, {"id": 7, "file_name": "0007.png"}],
        "annotations": [
            {"image_id": 7, "caption": "red"},
            {"image_id": 9, "caption": "blue"},
            {"image_id": 7, "caption": "red again"},
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(content))
    source = open_source(["coco", str(tmp_path)])
    assert listed(source) == [("7", ("red", "red again"), "validation"), ("9", ("blue",), "validation")]
    assert [colour_of(example) for example in source.examples] == ["red", "blue"]


def test_coco_without_annotations_or_with_others(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no captions_"):
        open_source(["coco", str(tmp_path)])
    (tmp_path / "captions_train2017.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="not a COCO caption file"):
        open_source(["coco", str(tmp_path)])


def test_tar_shards(tmp_path: Path) -> None:
    """Guards against reading the wrong bytes of a shard, and splitting keys at the wrong dot."""
    with tarfile.open(tmp_path / "train-000.tar", "w") as archive:
        for name, content in (
            ("d.x/1.png", png("green")),
            ("d.x/1.txt", "grün".encode()),
            ("2.seg.json", b"{}"),
            ("3.json", b'{"caption": "drei"}'),
            ("3.png", png("blue")),
            ("4.png", png("red")),
            ("4.txt", b" \n"),  # hid the caption in the JSON beside it
            ("4.json", b'{"caption": "real"}'),
            ("5.png", png("red")),
            ("5.txt", b""),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    source = open_source(["tar", str(tmp_path)])
    assert listed(source) == [
        ("train-000.tar/d.x/1", ("grün",), "train"),
        ("train-000.tar/3", ("drei",), "train"),
        ("train-000.tar/4", ("real",), "train"),
        ("train-000.tar/5", ("",), "train"),
    ]
    assert [colour_of(example) for example in source.examples] == ["green", "blue", "red", "red"]


def test_a_broken_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match="a.tar' is not a tar shard"):
        open_source(["tar", str(tmp_path)])


# hub


@pytest.fixture
def instagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the layout of the Instagram data set on the hub; its second training image is broken."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return save_hub_folder(tmp_path / "instagram", {"train": ["10", "11", "12"], "test": ["13"]}, png("green"))


def test_instagram_keeps_its_splits_and_survives_a_broken_image(instagram: Path) -> None:
    """Guards against a decoder that raises while the rows are iterated, and captions that are missing."""
    source = open_source(["instagram", str(instagram)])
    assert listed(source) == [
        ("10", ("caption 10",), "train"),
        ("11", ("caption 11",), "train"),
        ("12", ("",), "train"),
        ("13", ("caption 13",), "test"),
    ]
    examples = [*source.examples]
    assert examples[1].open() == b"broken"
    assert colour_of(examples[3]) == "green"


def test_any_hub_data_set_by_its_columns(instagram: Path, tmp_path: Path) -> None:
    """Guards against columns of other names, and a lone split called test that leaves nothing to train on."""
    options = SourceArguments(caption_column="image_path")
    assert listed(open_source(["hub", str(instagram)], options))[0] == ("train/0", ("images/10.png",), "train")
    one = save_hub_folder(tmp_path / "one", {"test": ["1"]}, png("green"))
    assert {example.split for example in open_source(["hub", str(one)]).examples} == {"train"}
    with pytest.raises(UserError, match="no column 'text'; it has image, item_id, image_path, caption"):
        open_source(["hub", str(instagram)], SourceArguments(caption_column="text"))


@pytest.mark.parametrize("lone", [True, False])
def test_a_data_set_as_save_to_disk_writes_it(tmp_path: Path, lone: bool) -> None:
    """A Dataset that was saved was refused; of a DatasetDict, splits of other names were left out."""
    from datasets import Dataset, DatasetDict, Features, Image, Value

    features = Features(image=Image(), caption=Value("string"))
    rows = {"image": [{"bytes": png(colour), "path": None} for colour in ("red", "blue")], "caption": ["a", "b"]}
    saved = Dataset.from_dict(rows, features=features).with_format("numpy", ["caption"])
    (saved if lone else DatasetDict(train=saved, extra=saved)).save_to_disk(
        tmp_path / "x", num_shards=2 if lone else None
    )
    source = open_source(["hub", str(tmp_path / "x")])
    splits = ["train"] if lone else ["train", "extra"]
    assert listed(source) == [
        (f"{split}/{row}", (caption,), split) for split in splits for row, caption in enumerate("ab")
    ]
    examples = [*source.examples]
    assert colour_of(examples[1]) == "blue"
    assert {example.origin.parent for example in examples} == {
        tmp_path / "x" / ("" if lone else name) for name in splits
    }


def test_without_network_one_sentence_names_the_data_set() -> None:
    """Guards against a page of traceback for a missing connection. (The tests run offline.)"""
    with pytest.raises(UserError, match="'kkcosmos/instagram-images-with-captions' could not be downloaded") as caught:
        open_source(["instagram"])
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_data_set_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data set .* could not be read"):
        open_source(["hub", str(tmp_path)])


# ClipCap's pickles


class Payload:
    """What a hostile pickle holds: unpickling it would create a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


class Storage:
    """A tensor's storage as torch pickles it, around bytes of our choice."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> tuple:
        import torch

        return torch.storage._load_from_bytes, (self.content,)


def dump(path: Path, content: object) -> str:
    path.write_bytes(pickle.dumps(content))
    return str(path)


def test_the_published_instagram_file(shared: Path) -> None:
    """Guards against rows lost or shifted, and the half precision of the file reaching the model."""
    source = open_source(["clipcap", str(shared / "instagram_100" / "embeddings_RN50x4_train.pkl")])
    assert len(source.examples) == 100 and source.clip == "RN50x4"
    assert listed(source)[0] == ("23177", ("Rows on rows on rows",), "train")
    assert {(example.clip_embedding.dtype.name, example.clip_embedding.shape) for example in source.examples} == {
        ("float32", (640,))
    }


def test_captions_that_share_an_embedding(tmp_path: Path) -> None:
    """Guards against pairing captions with embeddings by position where the file says which row is theirs."""
    import torch

    captions = [{"image_id": 5, "caption": str(i), "clip_embedding": row} for i, row in enumerate((1, 0, 1))]
    embeddings = torch.tensor([[0.0] * 640, [1.0] * 640], dtype=torch.float16)
    file = dump(tmp_path / "coco.pkl", {"clip_embedding": embeddings, "captions": captions})
    source = open_source(["clipcap", file])
    assert [(example.captions, example.clip_embedding[0].item()) for example in source.examples] == [
        (("0", "2"), 1.0),
        (("1",), 0.0),
    ]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("where", ["alone", "in a tensor", "in a tensor's zip", "in its state"])
def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path: Path, where: str) -> None:
    """Guards against `pickle.load`, and against torch's own storage loader, which unpickles what a tensor holds."""
    payload: object = Payload(tmp_path / "ran")
    if where == "in a tensor":
        payload = Storage(pickle.dumps(payload))
    elif where == "in a tensor's zip":
        import torch

        torch.save(payload, tmp_path / "inner.pt")
        payload = Storage((tmp_path / "inner.pt").read_bytes())
    elif where == "in its state":
        payload = {"x": [payload]}
    dump(tmp_path / "x.pkl", {"clip_embedding": payload, "captions": []})
    with pytest.raises(UserError, match="holds code .* was not run"):
        open_source(["clipcap", str(tmp_path / "x.pkl")])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"captions": []}, "lacks 'clip_embedding' and 'captions'"),
        ([1, 2], "lacks 'clip_embedding' and 'captions'"),
        ({"clip_embedding": 1, "captions": [1]}, "needs a tensor"),
        ("row", "caption 0 has no text or points at no embedding \\(2 exist\\)"),
        ("truncated", "not a complete pickle"),
        ("nonsense", "not a complete pickle"),
    ],
)
def test_a_pickle_of_something_else_is_explained(tmp_path: Path, content: object, sentence: str) -> None:
    import torch

    file = tmp_path / "x.pkl"
    captions = [{"image_id": 1, "caption": "x", "clip_embedding": 2}]
    whole = {"clip_embedding": torch.zeros(2, 512), "captions": captions}
    if content == "truncated":
        file.write_bytes(pickle.dumps(whole)[:-200])
    elif content == "nonsense":
        file.write_bytes(b"GIF89a")
    else:
        dump(file, whole if content == "row" else content)
    with pytest.raises(UserError, match=sentence):
        open_source(["clipcap", str(file)])


@pytest.mark.parametrize(
    ("name", "width", "asked", "clip"),
    [
        ("oscar_split_ViT-B_32_train.pkl", 512, None, "ViT-B/32"),
        ("ViT-L_14@336px.pkl", 768, None, "ViT-L/14@336px"),
        ("train_RN50x16.pkl", 768, None, "RN50x16"),
        ("train.pkl", 640, None, "RN50x4"),
        ("train.pkl", 512, None, "ViT-B/32"),
        ("train.pkl", 512, "ViT-B/16", "ViT-B/16"),
        ("train.pkl", 768, None, "cannot be told; name it with --clip"),
        ("train.pkl", 512, "RN50x4", "512 wide, RN50x4 makes 640"),
        ("ViT-B_32.pkl", 640, None, "640 wide, ViT-B/32 makes 512"),
    ],
)
def test_the_clip_of_a_pickle(tmp_path: Path, name: str, width: int, asked: str | None, clip: str) -> None:
    """Guards against training on embeddings under the name of a CLIP that did not make them."""
    import torch

    content = {
        "clip_embedding": torch.zeros(1, width),
        "captions": [{"image_id": 1, "caption": "x", "clip_embedding": 0}],
    }
    file = dump(tmp_path / name, content)
    if " " in clip:
        with pytest.raises(UserError, match=clip):
            open_source(["clipcap", file], clip=asked)
    else:
        assert open_source(["clipcap", file], clip=asked).clip == clip


# demo


def test_demo() -> None:
    """Guards against a demo dataset without a split that the scripts need."""
    from clipcap.world.scenes import SPLITS

    source = open_source(["demo"])
    counts = {split: sum(example.split == split for example in source.examples) for split in SPLITS}
    assert counts == SPLITS and source.clip == "demo"
    assert len({example.image_id for example in source.examples}) == len(source.examples)
    assert open_image(source.examples[0].open()).width > 32


# splits


def examples(images: int, captions: int = 1, split: str = "train") -> list[Example]:
    return [
        Example(str(image), (f"{image} {number}",), split=split)
        for image in range(images)
        for number in range(captions)
    ]


def test_captions_of_one_image_never_straddle_splits() -> None:
    """Guards against the leak that makes validation look good: the same image on both sides."""
    carved = carve_splits(examples(40, captions=3), {"validation": 0.1, "test": 0.2}, seed=0)
    places = {(example.image_id, example.split) for example in carved}
    assert len(places) == 40
    assert sorted(split for _, split in places) == ["test"] * 8 + ["train"] * 28 + ["validation"] * 4


def test_splits_depend_on_the_seed_alone() -> None:
    """Guards against a validation split that changes with the order of files or from run to run."""
    fractions = {"validation": 0.2, "test": 0.2}
    first = {example.image_id: example.split for example in carve_splits(examples(50), fractions, seed=1)}
    again = {example.image_id: example.split for example in carve_splits(examples(50)[::-1], fractions, seed=1)}
    other = {example.image_id: example.split for example in carve_splits(examples(50), fractions, seed=2)}
    assert first == again != other


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("cc3m-train-0000.tar", "train"),
        ("cc3m-validation-0000.tar", "validation"),
        ("default/partial-test/0000.parquet", "test"),
        ("captions_karpathy_test", "test"),
        ("test/train-and-val-0.tar", "train"),
        ("test/of-train-and-val-0.tar", "test"),
        ("contest-0.tar", "train"),
    ],
)
def test_a_split_may_stand_within_a_name(name: str, split: str) -> None:
    """The 13,443 validation pictures of pixparse/cc3m-wds were trained on: its shards are called cc3m-validation-*."""
    assert split_of(name) == split


def test_a_picture_is_in_one_split_whichever_of_its_rows_says_so(tmp_path: Path) -> None:
    """Guards against a picture that is trained on and tested: an empty cell put its other captions into train."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("image,caption,split\na.png,one,\na.png,two,test\na.png,three,\n")
    assert listed(open_source(["folder", str(tmp_path)])) == [("a.png", ("one", "two", "three"), "test")]
    (tmp_path / "captions.csv").write_text("image,caption,split\na.png,one,val\na.png,two,test\n")
    with pytest.raises(UserError, match="line 3, puts 'a.png' into test, and an earlier line into validation"):
        open_source(["folder", str(tmp_path)])


def test_a_split_of_the_source_is_kept_and_never_added_to() -> None:
    given = examples(20) + [Example("t", ("t",), split="test")]
    carved = carve_splits(given, {"validation": 0.05, "test": 0.5}, seed=0)
    assert [example.image_id for example in carved if example.split == "test"] == ["t"]
    assert sum(example.split == "validation" for example in carved) == 1
    assert list(carve_splits(given, {"validation": 0.0, "test": 0.0}, seed=0)) == given
    also_tested = [Example(str(image), ("t",), split="test") for image in range(20)]  # the same names, other pictures
    carved = carve_splits(examples(20) + also_tested, {"validation": 0.2, "test": 0.2}, seed=0)
    assert sum(example.split == "test" for example in carved) == 20


@pytest.mark.parametrize("seed", range(3))
def test_a_fraction_is_one_of_the_training_images_alone(seed: int) -> None:
    """Guards against a validation split that is too small, or too large, beside a large test split."""
    given = examples(10) + [Example(f"t{number}", ("t",), split="test") for number in range(90)]
    carved = carve_splits(given, {"validation": 0.2, "test": 0.2}, seed)
    assert [sum(example.split == split for example in carved) for split in ("train", "validation", "test")] == [
        8,
        2,
        90,
    ]


@pytest.mark.parametrize(("images", "fraction"), [(2, 0.05), (10, 0.5), (10, -0.1)])
def test_fractions_that_leave_nothing_are_refused(images: int, fraction: float) -> None:
    with pytest.raises(UserError, match="train|too few"):
        carve_splits(examples(images), {"validation": fraction, "test": fraction}, seed=0)


def test_limit_takes_the_first_images_of_every_split() -> None:
    """Guards against a limit that leaves only training images."""
    given = examples(5) + examples(3, split="test")
    kept = limit_examples(given, 2)
    assert [(example.image_id, example.split) for example in kept] == [
        ("0", "train"), ("1", "train"), ("0", "test"), ("1", "test")
    ]  # fmt: skip
    assert list(limit_examples(given, None)) == given
    rows = [Example(name, (str(row),)) for row, name in enumerate("aabcab")]  # as in ClipCap's own pickle of COCO
    assert [example.captions[0] for example in limit_examples(rows, 2)] == ["0", "1", "2", "4", "5"]
    with pytest.raises(UserError, match="--limit"):
        list(limit_examples(given, 0))


@pytest.mark.parametrize(
    ("text", "split"), [("val2014", "validation"), ("Test", "test"), ("dev", "validation"), ("x", "train")]
)
def test_names_of_splits(text: str, split: str) -> None:
    assert split_name(text) == split
