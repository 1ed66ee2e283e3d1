"""Guards the outputs: what an earlier run wrote is kept and continued, whatever state a crash left it in."""

import csv
import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from clipcap.captioning.rows import Row
from clipcap.captioning.writers import Sidecars, open_writer
from clipcap.errors import UserError

CAPTIONS = ["sun & <b>sea</b> ☀️", 'two "lines"\nhere\r\nand there', "=HYPERLINK(1)", "@bob -1", "a,b;c\t'd'", "\u2028x"]
ENDINGS = ["jsonl", "csv", "html"]


@pytest.fixture
def rows(tmp_path):
    paths = [tmp_path / name for name in ('a "b" <c>.png', "d.png", "=e.png", "f&g.png", "h.png", "ü.png")]
    for path in paths:
        Image.new("RGB", (40, 30), "navy").save(path)
    return [Row(str(path), [caption]) for path, caption in zip(paths, CAPTIONS, strict=True)]


def write(path, rows):
    writer = open_writer(path)
    for row in rows:
        writer.write(row)
    writer.close()


def read(path) -> list[tuple[str, str]]:
    """(picture, caption) as a reader of such files finds them."""
    if path.suffix == ".jsonl":
        return [(row["image"], row.get("caption")) for row in map(json.loads, path.open(encoding="utf-8"))]
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [(row["image"], row["caption"]) for row in csv.DictReader(file)]
    return Page(path).cards


class Page(HTMLParser):
    """The cards of a picture book, as a browser reads them."""

    def __init__(self, path):
        super().__init__()
        self.cards, self.pictures, self.inside = [], 0, False
        self.feed(path.read_text(encoding="utf-8", errors="surrogateescape"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "figure":
            self.cards.append((attributes["data-image"], ""))
        self.pictures += tag == "img" and attributes["src"].startswith("data:image/jpeg;base64,")
        self.inside = tag == "span" and bool(self.cards)

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "span"

    def handle_data(self, data):
        if self.inside:
            self.cards[-1] = (self.cards[-1][0], self.cards[-1][1] + data)


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_what_is_read(tmp_path, rows, ending):
    path = tmp_path / f"new/folder/out.{ending}"
    write(path, rows)
    unquoted = [(image.removeprefix("'"), caption.removeprefix("'")) for image, caption in read(path)]
    assert unquoted == [(row.image, row.captions[0]) for row in rows]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("torn", range(0, 60, 7))
def test_a_second_run_goes_on_where_a_crash_cut_the_first(tmp_path, rows, ending, torn):
    """A last row cut short made the file unreadable, or was taken for a finished one."""
    path = tmp_path / f"out.{ending}"
    write(path, [*rows[:2], Row(str(tmp_path / "broken.png"), error="truncated file"), rows[2]])
    whole = path.read_bytes()
    end = whole.index(b"</main>") if ending == "html" else len(whole)
    path.write_bytes(whole[: end - torn])
    writer = open_writer(path)
    assert [writer.wants(row.image) for row in rows] == [False, False, torn > (ending == "jsonl"), True, True, True]
    assert writer.wants(tmp_path / "broken.png")  # failures are tried again
    for row in rows:
        if writer.wants(row.image):
            writer.write(row)
    writer.close()
    found = [image.removeprefix("'") for image, _ in read(path)]
    assert sorted(found) == sorted(row.image for row in rows)
    before = path.read_bytes()
    open_writer(path).close()
    assert path.read_bytes() == before


def test_each_row_is_on_the_disk_when_it_exists(tmp_path, rows):
    for ending in ENDINGS:
        writer = open_writer(tmp_path / f"out.{ending}")
        writer.write(rows[0])
        assert read(tmp_path / f"out.{ending}")
        writer.close()


def test_the_same_picture_by_another_name_is_known(tmp_path, rows, monkeypatch):
    write(tmp_path / "out.jsonl", rows[:1])
    monkeypatch.chdir(tmp_path)
    assert not open_writer("out.jsonl").wants('./a "b" <c>.png')


def test_json_rows():
    assert Row("a", ["x"]).as_dict() == {"image": "a", "caption": "x"}
    assert Row("a", ["x", "y"], asked=2).as_dict() == {"image": "a", "caption": "x", "captions": ["x", "y"]}
    assert Row("a", ["x"], asked=3).as_dict()["captions"] == ["x"]
    assert Row("a", error="why").as_dict() == {"image": "a", "error": "why"}
    assert Row("a", ["x"], missing=["dog"]).as_dict()["missing"] == ["dog"]


def test_no_csv_cell_begins_a_formula(tmp_path):
    """A spreadsheet runs what begins with these signs, and captions begin with @ and - all the time."""
    bad = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1"]
    write(tmp_path / "out.csv", [Row(f"{text}.png", [text, "@b"], asked=2) for text in bad])
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        for row in csv.reader(file):
            assert all(cell.strip()[:1] not in set("=+-@＝＋－＠") for cell in row)
    assert (tmp_path / "out.csv").read_bytes().startswith(b"\xef\xbb\xbf")  # else Excel garbles emoji
    assert not open_writer(tmp_path / "out.csv").wants("=1+1.png")


def test_a_picture_book_escapes_and_holds_its_pictures(tmp_path, rows):
    rows[0].captions = ["<script>alert(1)</script>", "second"]
    failed = Row(str(tmp_path / "x.png"), error="<i>broken</i>")
    write(tmp_path / "out.html", [*rows, failed])
    text = (tmp_path / "out.html").read_text()
    assert "<script>alert" not in text and "<i>broken" not in text and "&lt;i&gt;broken" in text
    assert Page(tmp_path / "out.html").pictures == len(rows)
    assert "http" not in text.replace("http-equiv", "")  # nothing is fetched


def test_a_picture_gone_since_does_not_lose_its_caption(tmp_path):
    write(tmp_path / "out.html", [Row(str(tmp_path / "gone.png"), ["still here"])])
    assert read(tmp_path / "out.html") == [(str(tmp_path / "gone.png"), "still here")]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_of_something_else_is_left_alone(tmp_path, ending):
    path = tmp_path / f"out.{ending}"
    for content in (b"my only copy\nof a novel\n", b"my only copy", b"\xff\xfe\x00binary\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="choose another"):
            open_writer(path)
        assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_outputs_that_cannot_be_written_are_found_at_once(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "out.jsonl", tmp_path, tmp_path / "out.xlsx"):
        with pytest.raises(UserError):
            open_writer(path)


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path):
    for ending in ENDINGS:
        open_writer(tmp_path / f"out.{ending}").close()
    assert not list(tmp_path.iterdir())


def test_names_that_are_not_utf8(tmp_path):
    name = b"\xff\xe9.png".decode("utf-8", "surrogateescape")
    for ending in ENDINGS:
        write(tmp_path / f"out.{ending}", [Row(name, ["x"])])
        assert not open_writer(tmp_path / f"out.{ending}").wants(name)


def test_sidecars(tmp_path):
    row = Row(str(tmp_path / "a.jpg"), ["new"])
    text = tmp_path / "a.txt"
    assert Sidecars().wants(row.image)
    Sidecars().write(row)
    assert text.read_text() == "new\n"
    assert not Sidecars("skip").wants(row.image)
    Sidecars("append").write(Row(row.image, ["more", "two\nlines"], asked=2))
    assert text.read_text() == "new\nmore\ntwo lines\n"
    Sidecars("overwrite").write(row)
    assert text.read_text() == "new\n"
    Sidecars("overwrite").write(Row(row.image, error="broken"))
    assert text.read_text() == "new\n"


def test_two_pictures_of_one_stem_do_not_share_a_sidecar(tmp_path):
    """a.jpg and a.png both want a.txt: the second caption overwrote the first."""
    sidecars = Sidecars()
    for name in ("a.jpg", "a.png"):
        assert sidecars.wants(tmp_path / name)
        sidecars.write(Row(str(tmp_path / name), [name]))
    assert (tmp_path / "a.txt").read_text() == "a.jpg\n" and (tmp_path / "a.png.txt").read_text() == "a.png\n"


def test_a_sidecar_that_cannot_be_written_says_why(tmp_path):
    (tmp_path / "a.txt").mkdir()
    assert "cannot be written" in Sidecars("overwrite").write(Row(str(tmp_path / "a.jpg"), ["x"]))
