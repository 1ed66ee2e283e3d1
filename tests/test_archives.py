"""Instagram's export of one's own posts: exact captions from every layout, and one sentence for what is no export."""

import io
import json
import os
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import save_tiny_clip

import load_data
from clipcap.clip.images import open_image
from clipcap.data import archives
from clipcap.data.archives import repaired
from clipcap.data.examples import Example, carve_splits
from clipcap.data.sources import SourceArguments, open_source
from clipcap.data.store import EmbeddingStore
from clipcap.errors import UserError

POSTS = "your_instagram_activity/media/posts_1.json"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TYPED = "Café ☕ in Zürich, naïve 👩‍👧 日本 🏳️‍🌈"


def picture(colour: str, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), COLOURS[colour]).save(file, kind)
    return file.getvalue()


def garbled(text: str) -> str:
    """As Instagram writes text: the bytes of its UTF-8, each as a character."""
    return text.encode().decode("latin-1")


def alone(uri: str, title: Any = "hello") -> dict[str, Any]:
    medium = {"uri": uri, "creation_timestamp": 1_600_000_000, "media_metadata": {}, "title": title}
    return {"media": [medium]}


def together(title: str, *uris: str) -> dict[str, Any]:
    return {"media": [alone(uri, "")["media"][0] for uri in uris], "title": title, "creation_timestamp": 1_600_000_000}


def pack(file: Path, contents: dict[str, Any], top: str = "", **options: Any) -> str:
    """A zip file of these contents, bytes or JSON."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            archive.writestr(zipfile.ZipInfo(top + name), data, **options)
    return str(file)


def unpack(folder: Path, contents: dict[str, Any], top: str = "") -> str:
    for name, content in contents.items():
        (folder / top / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / top / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(folder)


def listed(path: str) -> dict[str, tuple[str, ...]]:
    return {example.image_id: example.captions for example in open_source(["instagram-archive", path]).examples}


def colour_of(example: Example) -> str:
    pixel = open_image(example.open()).getpixel((5, 5))
    return min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(pixel, COLOURS[name], strict=True)))


EVERYTHING = {
    POSTS: [
        alone("media/posts/202401/1.jpg", garbled(TYPED)),
        together(garbled("three of us 🎉\n#party"), "media/posts/202402/2.webp", "media/posts/202402/3.jpg", "4.mp4"),
        alone("media/posts/202403/5.mp4", "a video"),
        alone("media/posts/202403/6.MOV", "another"),
        alone("media/posts/202404/gone.jpg", "a picture that Instagram forgot"),
        alone("media/posts/202405/silent.jpg", ""),
        alone("../../etc/passwd", "out of here"),
        alone("/etc/hostname", "out of here as well"),
        alone("media/posts/202406/broken.heic", "no picture"),
        {"media": [], "title": "words alone"},
    ],
    "your_instagram_activity/media/posts_10.json": [alone("media/posts/201901/8.png", "the oldest, and right: é 🙂")],
    "your_instagram_activity/media/posts_2.json": [alone("media/posts/202001/7.png", "the older &amp; wiser")],
    "your_instagram_activity/media/posts.json": [{"label_values": []}],  # the same posts once more
    "your_instagram_activity/media/stories.json": {"ig_stories": [alone("media/stories/9.jpg", "a story")["media"][0]]},
    "your_instagram_activity/media/archived_posts.json": {"ig_archived_post_media": [alone("media/x.jpg", "hidden")]},
    "media/posts/202401/1.jpg": picture("red"),
    "media/posts/202402/2.webp": picture("green", "WEBP"),
    "media/posts/202402/3.jpg": picture("blue"),
    "media/posts/202405/silent.jpg": picture("green"),
    "media/posts/202406/broken.heic": b"no picture at all",
    "media/posts/202001/7.png": picture("green", "PNG"),
    "media/posts/201901/8.png": picture("blue", "PNG"),
}
CAPTIONS = {
    "media/posts/202401/1.jpg": TYPED,
    "media/posts/202402/2.webp": "three of us 🎉\n#party",
    "media/posts/202402/3.jpg": "three of us 🎉\n#party",
    "media/posts/202001/7.png": "the older & wiser",
    "media/posts/201901/8.png": "the oldest, and right: é 🙂",
}
SKIPPED = {
    "media/posts/202404/gone.jpg": "not in the archive",
    "../../etc/passwd": "not in the archive",
    "/etc/hostname": "not in the archive",
    "media/posts/202406/broken.heic": "not a picture, or a format that is not supported",
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_clip(tmp_path_factory.mktemp("clip")))


def load(archive: str, output: Path, clip: str, *options: str) -> EmbeddingStore:
    words = ["--source", "instagram-archive", archive, "--output", str(output), "--clip", clip, "--workers", "0"]
    load_data.main([*words, "--device", "cpu", "--val-fraction", "0", "--test-fraction", "0", *options])
    return EmbeddingStore.open(output)


@pytest.mark.parametrize("top", ["", "instagram-mia-2026-01-15-AbC123/"])
@pytest.mark.parametrize("build", [pack, unpack])
def test_an_archive_becomes_a_dataset_with_its_exact_captions(
    tmp_path: Path, clip: str, build: Callable[..., str], top: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against garbled emoji, a carousel that loses its caption, and a picture that goes without a word."""
    store = load(build(tmp_path / "export", EVERYTHING, top), tmp_path / "data", clip)
    assert dict(zip(store.column("train", "image_id"), store.captions("train"), strict=True)) == CAPTIONS
    printed = capsys.readouterr()
    told = "12 posts with 10 pictures, of which 3 are not there; 1 posts have no caption; 3 videos are left out"
    assert told in printed.err
    assert "images that could not be read: 4" in printed.out and "drop_empty 1" in printed.out
    skipped = [json.loads(line) for line in (tmp_path / "data" / "skipped.jsonl").read_text().splitlines()]
    names = {row["image"].partition(f"export/{top}")[2] or row["image"]: row["error"] for row in skipped}
    assert names == SKIPPED


def test_each_picture_is_its_own(tmp_path: Path) -> None:
    """Guards against reading the wrong member, and captions joined to the wrong picture."""
    for path in (pack(tmp_path / "export.zip", EVERYTHING), unpack(tmp_path / "export", EVERYTHING)):
        found = {example.image_id: example for example in open_source(["instagram-archive", path]).examples}
        assert [colour_of(found[name]) for name in CAPTIONS] == ["red", "green", "blue", "green", "blue"]


def test_layouts_of_earlier_years(tmp_path: Path) -> None:
    """Guards against an archive that was downloaded years ago, when there was still an account."""
    posts = [alone("media/posts/1.jpg", garbled("früher 🌊"))]
    for number, name in enumerate(("content/posts_1.json", "your_instagram_activity/content/posts_1.json")):
        files = {name: posts, "media/posts/1.jpg": picture("red")}
        assert listed(pack(tmp_path / f"{number}.zip", files)) == {"media/posts/1.jpg": ("früher 🌊",)}
    time = "2018-11-05T20:19:29"
    photos = [{"caption": "both ☀️", "taken_at": time, "path": f"photos/201811/{n}.jpg"} for n in (1, 2)]
    photos.append({"caption": "alone", "taken_at": "2018-12-24T18:00:00", "path": "photos/201812/3.jpg"})
    videos = [{"caption": "moving", "taken_at": time, "path": "videos/201811/4.mp4"}]
    media = {"photos": photos, "videos": videos, "stories": photos}
    path = pack(tmp_path / "old.zip", {"media.json": media, **{photo["path"]: picture("red") for photo in photos}})
    examples = open_source(["instagram-archive", path]).examples
    assert [(e.captions, e.group) for e in examples] == [
        *[(("both ☀️",), "photos/201811/1.jpg")] * 2,
        (("alone",), "photos/201812/3.jpg"),
    ]


@pytest.mark.parametrize("build", [pack, unpack])
def test_an_export_in_several_parts_is_read_from_one_folder(tmp_path: Path, build: Callable[..., str]) -> None:
    """Large exports come in parts: the posts in one, and most pictures in others."""
    (tmp_path / "parts").mkdir()
    posts = [alone(f"media/posts/{n}.jpg", f"caption {n}") for n in range(2)]
    build(tmp_path / "parts" / "a.zip", {POSTS: posts, "media/posts/0.jpg": picture("red")})
    build(tmp_path / "parts" / "b.zip", {"media/posts/1.jpg": picture("blue")})
    where = tmp_path / "parts"
    if build is unpack:  # each into a folder of its own
        with pytest.raises(UserError, match="no Instagram export"):
            open_source(["instagram-archive", str(where / "b.zip")])
    examples = open_source(["instagram-archive", str(where)]).examples
    assert [(example.captions, colour_of(example)) for example in examples] == [
        (("caption 0",), "red"),
        (("caption 1",), "blue"),
    ]
    (where / "a.zip").rename(tmp_path / "alone.zip")
    assert listed(str(tmp_path / "alone.zip")) == {f"media/posts/{n}.jpg": (f"caption {n}",) for n in range(2)}


def test_posts_are_listed_alike_on_every_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of one number came in the order in which the disk holds their folders: a copy was another dataset."""
    contents: dict[str, Any] = {}
    for top, colour in (("b", "red"), ("a", "green"), ("c", "blue")):
        contents[f"{top}/content/posts_1.json"] = [alone(f"{top}/x.jpg"), alone("x.jpg")]
        contents[f"{top}/x.jpg"] = picture(colour)
    archive, folder = pack(tmp_path / "a.zip", contents), unpack(tmp_path / "a", contents)
    walk, found = os.walk, []

    def backwards(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        yield from sorted(walk(root), reverse=True)

    for way in (walk, backwards):
        monkeypatch.setattr(os, "walk", way)
        examples = open_source(["instagram-archive", folder]).examples
        found.append([(example.image_id, colour_of(example)) for example in examples])
    assert found == [[("a/x.jpg", "green"), ("x.jpg", "green"), ("b/x.jpg", "red"), ("c/x.jpg", "blue")]] * 2
    assert [*listed(archive)] == [name for name, _ in found[0]]


def test_a_picture_that_was_posted_twice_has_two_captions(tmp_path: Path) -> None:
    posts = [alone("1.jpg", "first"), together("second", "1.jpg", "2.jpg"), alone("1.jpg", "first")]
    path = pack(tmp_path / "a.zip", {POSTS: posts, "1.jpg": picture("red"), "2.jpg": picture("red")})
    assert listed(path) == {"1.jpg": ("first", "second"), "2.jpg": ("second",)}
    assert {example.kept_together for example in open_source(["instagram-archive", path]).examples} == {"1.jpg"}


def test_posts_that_all_name_one_picture_are_read_in_seconds(tmp_path: Path) -> None:
    """The time grew with the square of their number: an archive of a megabyte took hours."""
    posts = [alone("1.jpg", f"caption {n}") for n in range(60_000)]
    path = pack(tmp_path / "a.zip", {POSTS: posts, "1.jpg": picture("red")})
    begun = time.process_time()
    assert len(listed(path)["1.jpg"]) == 60_000
    assert time.process_time() - begun < 10


def test_no_post_is_divided_among_splits(tmp_path: Path) -> None:
    """Its caption would be learned with one picture and tested with another."""
    posts = [together(f"post {n}", *(f"{n}/{k}.jpg" for k in range(3))) for n in range(40)]
    files = {f"{n}/{k}.jpg": b"" for n in range(40) for k in range(3)}
    examples = open_source(["instagram-archive", pack(tmp_path / "a.zip", {POSTS: posts, **files})]).examples
    carved = carve_splits(examples, {"validation": 0.2, "test": 0.1}, seed=0)
    splits = {example.captions: {e.split for e in carved if e.captions == example.captions} for example in carved}
    assert all(len(found) == 1 for found in splits.values())
    assert [sum(e.split == name for e in carved) for name in ("train", "validation", "test")] == [84, 24, 12]


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        (garbled(TYPED), TYPED),
        ("plain", "plain"),
        ("already right 🙂", "already right 🙂"),  # no latin-1
        ("caf\xe9", "caf\xe9"),  # no UTF-8
        (garbled("é") + " 🙂", garbled("é") + " 🙂"),  # half of it: left as it is
        ("", ""),
    ],
)
def test_text_is_repaired_where_that_can_be(text: str, typed: str) -> None:
    assert repaired(text) == typed


# What is no such archive


HTML = {"start_here.html": b"<html>", "your_instagram_activity/media/posts_1.html": b"<html>", "media/posts/1.jpg": b""}


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (HTML, "an Instagram export as HTML.*Accounts Center > .* in the format JSON"),
        ({"data/tweets.js": b"YTD", "data/tweets_media/1.jpg": b""}, "export of X .*'data/tweets.js'.* not of Inst"),
        ({"your_facebook_activity/posts/your_posts__1.json": []}, "export of Facebook"),
        ({"Takeout/Google Photos/1.jpg": b""}, "export of Google"),
        ({"user_data_tiktok.json": {}}, "export of TikTok"),
        ({"connections/followers_1.json": []}, "no Instagram export with posts: it has no posts_1.json .*ask for one"),
        ({"logged_information/past_instagram_insights/posts.json": []}, "no Instagram export with posts"),
        ({}, "no Instagram export with posts"),
        ({POSTS: []}, "lists 0 posts with 0 videos and no picture"),
        ({POSTS: [alone("1.mp4")], "1.mp4": b""}, "1 posts with 1 videos and no picture"),
        ({POSTS: [alone("1.jpg")]}, "1 posts with 1 pictures .*several parts, put all of their ZIPs into one folder"),
        ({POSTS: b"[{"}, "posts_1.json' is not JSON that can be read"),
        ({POSTS: b"[" * 100_000}, "posts_1.json' is not JSON that can be read .*deep"),
        ({POSTS: b"\xff\xfe\x00"}, "posts_1.json' is not JSON that can be read"),
        ({POSTS: [3]}, "posts_1.json' is not a list of posts"),
        ({POSTS: "posts"}, "posts_1.json' is not a list of posts"),
        ({POSTS: [{"media": {"uri": "1.jpg"}}]}, "post 1 is not a list of posts"),
        ({POSTS: [{"media": [{"title": "x"}]}]}, "post 1: uri must be a text, not null"),
        ({POSTS: [alone("1.jpg"), {"media": [{"uri": ["1.jpg"]}]}]}, "post 2: uri must be a text, not a list"),
        ({POSTS: [alone("1.jpg", {"text": "x"})]}, "post 1: the caption must be a text, not an object"),
        ({"media.json": {"photos": [{"caption": "x"}]}}, "post 1: uri must be a text, not null"),
        ({"media.json": {"photos": "x"}}, "media.json' is not a list of posts"),
    ],
)
@pytest.mark.parametrize("build", [pack, unpack])
def test_what_is_no_export_is_explained(
    tmp_path: Path, build: Callable[..., str], contents: dict[str, Any], sentence: str
) -> None:
    """Guards against a traceback over a stranger's archive, and "no pictures" where another archive is needed."""
    (tmp_path / "it").mkdir()
    path = build(tmp_path / "it" if build is unpack else tmp_path / "it.zip", contents)
    with pytest.raises(UserError, match=sentence) as refused:
        open_source(["instagram-archive", path])
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_an_archive_with_a_password_is_refused(tmp_path: Path) -> None:
    """Guards against zipfile's RuntimeError. It cannot encrypt, so the flag is set by hand, in both headers."""
    path = Path(pack(tmp_path / "a.zip", {POSTS: [alone("1.jpg")], "1.jpg": picture("red")}))
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.find(mark)
        while start >= 0:
            content[start + place] |= 1
            start = content.find(mark, start + 1)
    path.write_bytes(content)
    with pytest.raises(UserError, match="protected by a password; unpack it, and give the folder"):
        open_source(["instagram-archive", str(path)])


@pytest.mark.parametrize("content", [b"", b"Rar!\x1a\x07\x00", b"PK\5\6" + b"\xff" * 18, b"<html>" * 99])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="is not a ZIP that can be read .*as it was downloaded, or the folder"):
        open_source(["instagram-archive", str(tmp_path / "a.zip")])


def test_a_download_that_was_cut_off_is_refused_at_every_length(tmp_path: Path) -> None:
    whole = Path(pack(tmp_path / "a.zip", {POSTS: [alone("1.jpg")], "1.jpg": picture("red")})).read_bytes()
    for length in range(0, len(whole), 41):
        (tmp_path / "a.zip").write_bytes(whole[:length])
        with pytest.raises(UserError, match="is not a ZIP"):
            open_source(["instagram-archive", str(tmp_path / "a.zip")])


@pytest.mark.parametrize("place", ["list", "picture"])
def test_a_damaged_member_is_refused_or_skipped(tmp_path: Path, clip: str, place: str) -> None:
    """Guards against zlib's errors and wrong checksums, which are no OSErrors."""
    posts = [alone("1.jpg", "one"), alone("2.jpg", "two")]
    path = Path(pack(tmp_path / "a.zip", {POSTS: posts, "1.jpg": picture("red"), "2.jpg": picture("blue")}))
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(POSTS if place == "list" else "1.jpg")
    content = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename) + 10
    content[start : start + 20] = bytes(20)
    path.write_bytes(content)
    if place == "list":
        with pytest.raises(UserError, match=r"posts_1.json' cannot be read \(damaged in the archive"):
            open_source(["instagram-archive", str(path)])
    else:
        assert load(str(path), tmp_path / "data", clip).captions("train") == ["two"]
        assert '"image": "1.jpg", "error": "damaged in the archive' in (tmp_path / "data" / "skipped.jsonl").read_text()


def test_what_unfolds_to_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte can unfold to a gigabyte, and its header may lie about that: it was unfolded all the same."""
    monkeypatch.setattr(archives, "MOST_LIST", 10_000)
    monkeypatch.setattr(archives, "MOST_PICTURE", 10_000)
    files = {"1.jpg": bytes(10**6), "2.jpg": bytes(10**6)}
    path = Path(pack(tmp_path / "a.zip", {POSTS: [alone(name) for name in files], **files}))
    content = bytearray(path.read_bytes())
    last = content.rfind(b"PK\1\2")
    content[last + 24 : last + 28] = (100).to_bytes(4, "little")  # the size of 2.jpg, as the list of members says it
    path.write_bytes(content)
    first, second = open_source(["instagram-archive", str(path)]).examples
    tracemalloc.start()
    for example, reason in ((first, "larger than"), (second, "damaged in the archive")):
        with pytest.raises(Exception, match=reason):
            open_image(example.open())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000
    for build in (pack, unpack):
        where = build(tmp_path / "b", {POSTS: [alone("x" * 20_000)]})
        with pytest.raises(UserError, match="posts_1.json' cannot be read"):
            open_source(["instagram-archive", where])
        (tmp_path / "b").unlink() if build is pack else None


def test_a_list_of_millions_of_empty_posts_is_not_parsed(tmp_path: Path) -> None:
    """An archive of 190 kB unfolds to 200 MB of JSON, which took over 10 GB and minutes."""
    path = pack(tmp_path / "a.zip", {POSTS: b"[" + b"{}," * 20_000_000 + b"{}]"})
    begun = time.process_time()
    with pytest.raises(UserError, match=r"posts_1.json' is not JSON .* more than 20,000,000 lists and objects"):
        open_source(["instagram-archive", path])
    assert time.process_time() - begun < 5


def test_a_compression_that_instagram_does_not_use_is_not_read(tmp_path: Path) -> None:
    """What lzma and bz2 unfold is not bounded by what is asked of them."""
    path = pack(tmp_path / "a.zip", {POSTS: [alone("1.jpg")]}, compress_type=zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match="compressed in a way that Instagram does not use"):
        open_source(["instagram-archive", path])


def test_nothing_is_unpacked_and_no_name_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a member that is called ../../x and lands there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.jpg").write_bytes(picture("blue"))
    (tmp_path / "in").mkdir()
    names = ["../secret.jpg", str(tmp_path / "secret.jpg"), "../../x.jpg"]
    path = pack(tmp_path / "in" / "a.zip", {POSTS: [alone(n) for n in [*names, "1.jpg"]], "1.jpg": b"", names[2]: b"x"})
    before = sorted(tmp_path.rglob("*"))
    for example in open_source(["instagram-archive", path]).examples[:2]:
        with pytest.raises(Exception, match="not in the archive"):
            open_image(example.open())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_out_of_the_folder_is_followed_only_when_allowed(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(picture("blue"))
    path = unpack(tmp_path / "export", {POSTS: [alone("1.jpg")]})
    (tmp_path / "export" / "1.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match="leads outside.*--allow-outside"):
        open_source(["instagram-archive", path])
    (example,) = open_source(["instagram-archive", path], SourceArguments(allow_outside=True)).examples
    assert colour_of(example) == "blue"


def test_an_archive_that_changed_is_noticed(tmp_path: Path, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against embeddings of one export with the captions of the next."""
    files = {POSTS: [alone("1.jpg"), alone("2.jpg")], "1.jpg": picture("red"), "2.jpg": picture("green")}
    load(pack(tmp_path / "a.zip", files), tmp_path / "data", clip)
    load(pack(tmp_path / "a.zip", files, "packed-again/"), tmp_path / "data", clip)
    assert "complete already" in capsys.readouterr().err
    pack(tmp_path / "a.zip", files | {"2.jpg": picture("blue")})
    with pytest.raises(UserError, match=r"stale: 1 of its pictures changed .*\('2.jpg'\)"):
        load(str(tmp_path / "a.zip"), tmp_path / "data", clip)


def test_a_part_that_is_a_link_leads_nowhere_outside(tmp_path: Path) -> None:
    """Guards against a stranger's folder whose part of the export is a ZIP elsewhere on this computer."""
    pack(tmp_path / "private.zip", {POSTS: [alone("1.jpg")], "1.jpg": b"x"})
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "part.zip").symlink_to(tmp_path / "private.zip")
    with pytest.raises(UserError, match="leads outside .*--allow-outside"):
        listed(str(tmp_path / "export"))


@pytest.mark.parametrize("name", ["content/posts_{}.json", "media_{}.json"])
def test_a_list_numbered_by_thousands_of_digits_is_none(tmp_path: Path, name: str) -> None:
    """Python refuses to read such a number, which was a fault of the program."""
    with pytest.raises(UserError, match="no Instagram export"):
        listed(pack(tmp_path / "it.zip", {name.format("9" * 5000): []}))


def test_a_post_without_media_costs_nothing_but_itself(tmp_path: Path) -> None:
    content = {POSTS: [alone("1.jpg"), {"media": None, "title": "words alone"}], "1.jpg": b"x"}
    assert list(listed(pack(tmp_path / "it.zip", content))) == ["1.jpg"]


@pytest.mark.parametrize(
    "words", [["--help"], ["."], ["a.zip", "-5"], ["a.zip", "0"], ["a.zip", "5", "more"], ["a.zip", "x"]]
)
def test_the_archive_of_the_demo_needs_a_file_and_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Guards against 200 posts that are drawn into a file called --help."""
    from demo import archive

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        archive.main(words)
    assert not list(tmp_path.iterdir())
