"""Guards the outputs: what an earlier run wrote is kept and continued, whatever state a crash left it in."""

import csv
import errno
import json
import os
import struct
import subprocess
import threading
import zlib
from contextlib import closing, contextmanager
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from test_files import file_size_limit

from clipcap.captioning import xmp
from clipcap.captioning.rows import Row, read_name, written_name
from clipcap.captioning.sidecars import TEXT, XMP, Sidecars
from clipcap.captioning.writers import open_writer
from clipcap.clip.images import date_taken
from clipcap.errors import Interrupted, UserError
from clipcap.files import only_writer

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


@pytest.mark.parametrize("ending", ENDINGS)
def test_pictures_of_another_folder_with_the_same_names_are_others(tmp_path, monkeypatch, ending):
    """Cameras repeat IMG_0001.JPG: those of a second folder were taken for captioned."""
    for folder in ("2023", "2024"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / folder / "1.png")
        monkeypatch.chdir(tmp_path / folder)
        with closing(open_writer(tmp_path / f"out.{ending}")) as writer:
            assert writer.wants("1.png")
            writer.write(Row("1.png", ["x"]))
    names = [name for name, _ in read(tmp_path / f"out.{ending}")]
    assert names == [str(tmp_path / folder / "1.png") for folder in ("2023", "2024")]


NOT_FOUND = "note: pictures in {!r} that cannot be found from its folder, and do not count as captioned: 1\n"


def test_rows_that_lead_nowhere_are_told_of(tmp_path, monkeypatch, capsys):
    """Guards against a folder that is captioned once more, without a word, since its output was moved."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    write("out.jsonl", [Row("photos of 2023/1.png", ["x"]), Row("/photos/2.png", ["x"])])
    Path("out.jsonl").rename("elsewhere/out.jsonl")
    with closing(open_writer("elsewhere/out.jsonl")):
        assert capsys.readouterr().err == NOT_FOUND.format(str(tmp_path / "elsewhere/out.jsonl"))


def test_a_picture_that_was_deleted_is_no_missing_folder(tmp_path, monkeypatch, capsys):
    """Guards against a note of folders that are not there, where a picture beside the output has gone."""
    monkeypatch.chdir(tmp_path)
    write("out.jsonl", [Row("1.png", ["x"])])
    with closing(open_writer("out.jsonl")):
        assert capsys.readouterr().err == NOT_FOUND.format(str(tmp_path / "out.jsonl"))


def test_a_picture_is_known_through_a_linked_folder(tmp_path, monkeypatch):
    """Guards against pictures of a drive with two names, as in Windows: every run captioned them once more."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "linked").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "out.jsonl", [Row("linked/1.png", ["x"])])
    with closing(open_writer("out.jsonl")) as writer:
        assert not writer.wants("photos/1.png") and not writer.wants("linked/1.png")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_relative_path_of_an_earlier_run_is_no_picture_of_this_ones_folder(tmp_path, monkeypatch, ending):
    """An output within 2023, continued from 2024 or from above both, had all of their pictures already.

    So the first run writes the whole path of a picture whose path could be that of another picture, and a second run
    has nothing left to do.
    """
    for folder in ("2023", "2024", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("1.png", "2.png"):
            Image.new("RGB", (40, 30)).save(tmp_path / folder / name)
    (tmp_path / "2.png").unlink()  # what 2023/2.png is called in 2023 means no other picture
    out = tmp_path / "2023" / f"out.{ending}"
    monkeypatch.chdir(tmp_path / "2023")
    write(out, [Row("1.png", ["x"]), Row("2.png", ["x"])])
    for folder, missing in (("2023", []), ("2024", ["1.png", "2.png"]), (".", ["1.png"]), ("2023", [])):
        monkeypatch.chdir(tmp_path / folder)
        with closing(open_writer(out)) as writer:
            wanted = [name for name in ("1.png", "2.png") if os.path.exists(name) and writer.wants(name)]
            assert wanted == missing
            assert writer.wants(tmp_path / "2023" / "2.png") is False
            for name in wanted:
                writer.write(Row(name, ["x"]))
    whole = [str(tmp_path / name) for name in ("2023/1.png", "2024/1.png", "2024/2.png", "1.png")]
    assert [name for name, _ in read(out)] == [whole[0], "2.png", *whole[1:]]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_path_that_has_become_that_of_two_pictures_is_no_caption_of_either(tmp_path, monkeypatch, ending):
    """Which of the two it was is lost, as it is in outputs of 0.1.0: both are captioned, and known from then on."""
    (tmp_path / "trip").mkdir()
    monkeypatch.chdir(tmp_path / "trip")
    Image.new("RGB", (40, 30)).save("1.png")
    write(f"out.{ending}", [Row("1.png", ["x"])])
    Image.new("RGB", (40, 30)).save("../1.png")
    for wanted in (True, False):
        with closing(open_writer(f"out.{ending}")) as writer:
            for name in ("1.png", "../1.png"):
                assert writer.wants(name) == wanted
                if wanted:
                    writer.write(Row(name, ["x"]))
    whole = [str(tmp_path / "trip/1.png"), str(tmp_path / "1.png")]
    assert [name for name, _ in read(Path(f"out.{ending}"))] == ["1.png", *whole]


def test_json_rows():
    assert Row("a", ["x"]).as_dict() == {"image": "a", "caption": "x"}
    assert Row("a", ["x", "y"], asked=2).as_dict() == {"image": "a", "caption": "x", "captions": ["x", "y"]}
    assert Row("a", ["x"], asked=3).as_dict()["captions"] == ["x"]
    assert Row("a", error="why").as_dict() == {"image": "a", "error": "why"}
    assert Row("a", ["x"], missing=["dog"]).as_dict()["missing"] == ["dog"]


def test_no_csv_cell_begins_a_formula(tmp_path, monkeypatch):
    """A spreadsheet runs what begins with these signs, and captions begin with @ and - all the time."""
    monkeypatch.chdir(tmp_path)
    bad = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1"]
    Path("=1+1.png").touch()
    write(tmp_path / "out.csv", [Row(f"{text}.png", [text, "@b"], asked=2) for text in bad])
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        for row in csv.reader(file):
            assert all(cell.strip()[:1] not in set("=+-@＝＋－＠") for cell in row)
    assert (tmp_path / "out.csv").read_bytes().startswith(b"\xef\xbb\xbf")  # else Excel garbles emoji
    assert not open_writer(tmp_path / "out.csv").wants("=1+1.png")


def test_the_quote_before_a_formula_is_told_from_one_in_the_name(tmp_path, monkeypatch):
    """The quote that guards a cell was taken off names that had one of their own: two pictures were mixed up."""
    monkeypatch.chdir(tmp_path)
    names = ["=1.jpg", "'=1.jpg", "''=1.jpg", "'a.jpg", "' =1.jpg", "=2.jpg"]
    for name in names:
        Path(name).touch()
    for count, name in enumerate(names[:-1]):
        with closing(open_writer("out.csv")) as writer:
            assert [writer.wants(each) for each in names] == [False] * count + [True] * (len(names) - count)
            writer.write(Row(name, [name]))
    before = Path("out.csv").read_bytes()
    open_writer("out.csv").close()
    assert Path("out.csv").read_bytes() == before
    cells = [cell for pair in read(Path("out.csv")) for cell in pair]
    assert cells[::2] == cells[1::2] == ["'=1.jpg", "''=1.jpg", "'''=1.jpg", "'a.jpg", "'' =1.jpg"]


def test_a_line_of_more_captions_is_one_caption(tmp_path):
    """A caption of two lines could not be told from two captions."""
    write(tmp_path / "out.csv", [Row("a.jpg", ["first\nline", "a dog\nin the sun", "a\r\ncat"], asked=3)])
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        [row] = csv.DictReader(file)
    assert row["caption"] == "first\nline" and row["more captions"] == "a dog in the sun\na cat"


def test_a_table_holds_literal_captions_if_they_are_asked_for(tmp_path):
    """They were left out without a word."""
    for literal in (True, False):
        path = tmp_path / f"{literal}.csv"
        for name, caption in (("a.jpg", "=a dog"), ("b.jpg", None)):
            with closing(open_writer(path, literal)) as writer:
                writer.write(Row(name, ["x"], literal=caption if literal else None))
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = list(csv.DictReader(file))
        assert [row.get("literal") for row in table] == (["'=a dog", ""] if literal else [None, None])
        before = path.read_bytes()
        told = "with --show-literal: give it" if literal else "without --show-literal: leave it out"
        with pytest.raises(UserError, match=f"was written {told}, or choose another output"):
            open_writer(path, not literal)
        assert path.read_bytes() == before


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


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_that_are_not_utf8(tmp_path, ending, monkeypatch):
    """The file was not UTF-8 either, so that nothing could read it but ourselves."""
    monkeypatch.chdir(tmp_path)
    names = [os.fsdecode(b"\xff\xe9.png"), "\\udcff\\udce9.png", "\\u005cudcff.png", "C:\\users\\udo.png"]
    path = tmp_path / f"out.{ending}"
    for name in names[:2]:
        Path(name).touch()
    write(path, [Row(name, ["x"]) for name in names[:2]])
    assert path.read_bytes().decode("utf-8").count("udcff") >= 2
    if ending == "jsonl":
        assert [image for image, _ in read(path)] == names[:2]
    writer = open_writer(path)
    assert [writer.wants(name) for name in names] == [False, False, True, True]
    writer.close()
    assert [read_name(written_name(name)) for name in names] == names
    path.unlink()
    write(path, [Row(names[0], ["x"])])
    path.write_bytes(path.read_bytes().replace(b"\\udcff", b"\xff").replace(b"\\udce9", b"\xe9"))  # as it used to be
    writer = open_writer(path)
    assert not writer.wants(names[0]) and path.read_bytes().decode("utf-8")
    writer.close()


@pytest.mark.parametrize(
    "line",
    [
        *("[1, 2]", "null", "5", '"text"', "{}", '{"image": null, "caption": "x"}', '{"image": 5, "caption": "x"}'),
        *('{"image": ["a"], "caption": "x"}', '{"image": "h.png"}', '{"image": "h.png", "caption": null}'),
        *('{"image": "a\\u0000b.png", "caption": "x"}', '{"image": "\\ud800", "caption": "\\ud800"}'),
    ],
)
def test_odd_rows_of_an_earlier_output_stay_and_stop_nothing(tmp_path, rows, monkeypatch, line):
    """Some ended in a traceback, and a row without a caption was taken for a caption."""
    monkeypatch.chdir(tmp_path)
    Path("out.jsonl").write_text(f"\n{line}\r\n" + '{"image": "d.png", "caption": "mine"}\n' * 2 + line)
    writer = open_writer("out.jsonl")
    assert writer.wants("h.png") and not writer.wants("d.png")
    writer.write(Row("h.png", ["new"]))
    writer.close()
    kept = Path("out.jsonl").read_text().splitlines()
    assert kept.count(line) == 2 and len(kept) == 5 and json.loads(kept[-1])["caption"] == "new"


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("jsonl", b'{"image": "a", "caption": "x"}\n{"image": "b", "cap\n{"image": "c", "caption": "x"}\n'),
        ("jsonl", b'{"image": "a", "caption": "x"}\n\0\0\0\0\n{"image": "c", "caption": "x"}\n'),
        ("jsonl", b'{"image": "a", "caption": "x", "n": ' + b"9" * 5000 + b"}\n"),
        ("jsonl", b"[" * 100_000),
        ("csv", b'image,caption,more captions,error\r\na,"x,,\r\nb,y,,\r\nc,z,,\r\n'),  # one quote swallows b and c
        ("csv", b'image,caption,more captions,error\r\na,"x,,\r\n' + b"b,y,,\r\n" * 40_000),
        ("csv", b'image,caption,more captions,error\r\na,"x,,\r\nb,"y",,\r\n'),
        ("csv", b"image,caption,more captions,error\r\na,x,,,,\r\nb,y,,\r\n"),
        *(("csv", content) for content in (b'"image,caption', b"image,caption\r\n", b'"' + b"x" * 200_000)),
        ("html", b"<!-- picture book -->\n" + b'<figure class="card"\n data-image="a">\n</figure>\n'),
    ],
)
def test_a_broken_output_is_refused_and_left_as_it_is(tmp_path, ending, content):
    """Reading on from the next row, or stopping there, silently dropped captions."""
    path = tmp_path / f"out.{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="choose another"):
        open_writer(path)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_zeros_at_the_end_after_a_power_cut_are_a_row_cut_short(tmp_path, rows):
    write(tmp_path / "out.jsonl", rows[:1])
    whole = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").write_bytes(whole + bytes(500))
    open_writer(tmp_path / "out.jsonl").close()
    assert (tmp_path / "out.jsonl").read_bytes() == whole


# A full disk


def test_a_table_that_another_program_saved_is_continued(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        Path(name).touch()
    path = tmp_path / "out.csv"
    path.write_text('"image","caption","more captions","error"\n"a.jpg","x","",""\n\n"b.jpg","y","","note"')
    writer = open_writer(path)
    assert not writer.wants("a.jpg") and not writer.wants("b.jpg")
    writer.close()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("short", [1, 40])
def test_a_full_disk_keeps_whole_rows_only_and_the_next_run_goes_on(tmp_path, rows, ending, short):
    """Half a row stayed, and closing the file raised once more, over the sentence."""
    path = tmp_path / f"out.{ending}"
    write(path, rows[:3])
    size = path.stat().st_size
    path.unlink()
    with file_size_limit(size - short):
        writer = open_writer(path)
        with pytest.raises(UserError, match=r"could not be written \(File too large\)"):
            for row in rows:
                writer.write(row)
        writer.close()
        written = len(read(path))
        assert 2 <= written <= 3
        if ending == "html":  # no half card
            assert path.read_text().count("<figure ") == path.read_text().count("</figure>") == written
    writer = open_writer(path)
    assert [writer.wants(row.image) for row in rows] == [False] * written + [True] * (len(rows) - written)
    for row in rows[written:]:
        writer.write(row)
    writer.close()
    assert len(read(path)) == len(rows) and os.listdir(tmp_path).count(path.name) == 1
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_disk_that_is_full_when_the_page_is_closed_is_said_too(tmp_path, rows):
    path = tmp_path / "out.html"
    writer = open_writer(path)
    writer.write(rows[0])
    with file_size_limit(path.stat().st_size + 5), pytest.raises(UserError, match="could not be written"):
        writer.close()
    assert path.read_text().endswith("</figure>\n")


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_interruption_within_a_row_leaves_no_half_of_it(tmp_path, rows, monkeypatch, ending):
    path = tmp_path / f"out.{ending}"
    writer = open_writer(path)
    writer.write(rows[0])
    before, file = path.read_bytes(), writer.file

    class Interrupting:
        fileno, truncate = file.fileno, file.truncate

        def write(self, data):
            file.write(data[:20])
            raise Interrupted("terminated")

    monkeypatch.setattr(writer, "file", Interrupting())
    with pytest.raises(Interrupted):
        writer.write(rows[1])
    monkeypatch.undo()
    assert path.read_bytes() == before
    writer.close()
    assert len(read(path)) == 1


def test_a_full_disk_leaves_no_empty_sidecar_and_the_old_one(tmp_path):
    """An empty .txt was a caption for the next run."""
    new, old = Row(str(tmp_path / "a.jpg"), ["word " * 100]), Row(str(tmp_path / "b.jpg"), ["word " * 100])
    (tmp_path / "b.txt").write_text("mine\n")
    for existing in ("overwrite", "append"):
        sidecars = Sidecars(existing)
        assert sidecars.wants(new.image)
        for row in (new, old):
            with file_size_limit(100), pytest.raises(UserError, match=r"could not be written \(File too large\)"):
                sidecars.write(row)
        sidecars.close()
        assert os.listdir(tmp_path) == ["b.txt"] and (tmp_path / "b.txt").read_text() == "mine\n"
    sidecars = Sidecars()
    assert sidecars.wants(new.image) and sidecars.write(new) is None
    sidecars.close()
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]


def test_an_empty_sidecar_is_no_caption(tmp_path):
    (tmp_path / "a.txt").touch()
    assert Sidecars().wants(tmp_path / "a.jpg")


def test_a_folder_is_no_caption(tmp_path):
    (tmp_path / "a.txt").mkdir()
    sidecars = Sidecars()
    assert sidecars.wants(tmp_path / "a.jpg")
    assert sidecars.write(Row(str(tmp_path / "a.jpg"), ["x"])) == "its .txt cannot be written (Is a directory)"
    sidecars.close()


def test_a_working_folder_that_may_not_be_listed_is_a_reason_and_no_fault(tmp_path):
    sidecars = Sidecars()
    assert sidecars.wants(".") and sidecars.write(Row(".", [], error="may not be listed")) is None
    sidecars.close()


def test_a_folder_that_another_run_took_meanwhile_costs_its_pictures_alone(tmp_path):
    """A run over 64 folders lets go of the first; a second run there ended it."""
    with only_writer(tmp_path):
        reason = Sidecars().write(Row(str(tmp_path / "a.jpg"), ["x"]))
    assert reason.startswith("its .txt is not written: ") and "is being written by process" in reason


def test_an_accent_of_its_own_makes_no_other_name(tmp_path):
    """macOS takes the two for one, and the second picture's caption was dropped."""
    for name in ("\u00e9.jpg", "e\u0301.png"):
        (tmp_path / name).touch()
    files = [Sidecars()._files(tmp_path / name, ".txt")[0].name for name in os.listdir(tmp_path)]
    assert sorted(files) == ["e\u0301.png.txt", "\u00e9.jpg.txt"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here ({mounted.stderr.strip()})")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("ending", [*ENDINGS, "txt"])
def test_a_small_disk_runs_full_and_the_run_goes_on_after_space_is_made(small_disk, ending):
    def open_output():
        return Sidecars() if ending == "txt" else open_writer(small_disk / f"out.{ending}")

    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(40_000))
    output = open_output()
    everything = [Row(str(small_disk / f"{number}.jpg"), ["word " * 300]) for number in range(20)]
    with pytest.raises(UserError, match="No space left on device"):
        for row in everything:
            if output.wants(row.image):
                output.write(row)
    output.close()
    ballast.unlink()
    output = open_output()
    missing = [row for row in everything if output.wants(row.image)]
    assert 0 < len(missing) < 20
    for row in missing[:3]:
        output.write(row)
    assert [output.wants(row.image) for row in missing[:4]] == ([False] * 3 if ending == "txt" else [True] * 3) + [True]
    output.close()
    assert not [name for name in os.listdir(small_disk) if name.startswith(".")]
    if ending == "txt":
        assert all(path.read_text() == "word " * 300 + "\n" for path in small_disk.glob("*.txt"))
    else:
        assert len(read(small_disk / f"out.{ending}")) == 20 - len(missing) + 3


# One writer at a time


def test_an_output_has_one_writer_whichever_link_leads_to_it(tmp_path, rows):
    writer = open_writer(tmp_path / "out.jsonl")
    (tmp_path / "link.jsonl").symlink_to("out.jsonl")
    for name in ("out.jsonl", "link.jsonl"):
        with pytest.raises(UserError, match="is being written by process"):
            open_writer(tmp_path / name)
    writer.write(rows[0])
    writer.close()
    write(tmp_path / "link.jsonl", rows[1:2])
    assert (tmp_path / "link.jsonl").is_symlink() and len(read(tmp_path / "out.jsonl")) == 2
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".lock")]


def test_a_folder_gets_sidecars_from_one_run_at_a_time(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in "abcde"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr("clipcap.captioning.held_folders.MOST_HELD", 2)  # more folders than can be held at once
    sidecars = Sidecars("overwrite")
    for folder in [*folders, folders[0]]:
        assert sidecars.wants(folder / "a.jpg") and sidecars.write(Row(str(folder / "a.jpg"), ["x"])) is None
        with pytest.raises(UserError, match="is being written by process"):
            Sidecars().wants(folder / "b.jpg")
        assert not Sidecars().wants(folder / "a.jpg")  # where nothing is to be written, nobody waits
    assert len([*tmp_path.rglob(".lock")]) == 2
    sidecars.close()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.txt"] * 5


def test_a_pipe_and_a_device_are_outputs_too(tmp_path, rows):
    os.mkfifo(tmp_path / "pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDWR), "rb", buffering=0) as reader:
        write(tmp_path / "pipe", rows[:1])
        assert json.loads(reader.read(10_000))["image"] == rows[0].image
    write("/dev/null", rows[:1])
    reading, writing = os.pipe()  # as a shell's >(gzip > captions.gz) is
    write(f"/dev/fd/{writing}", rows[:1])
    assert json.loads(os.read(reading, 10_000))["image"] == rows[0].image
    os.close(reading), os.close(writing)


# A .txt beside each picture


def test_sidecars(tmp_path):
    row = Row(str(tmp_path / "a.jpg"), ["new"])
    text = tmp_path / "a.txt"
    assert Sidecars().wants(row.image)
    Sidecars().write(row)
    assert text.read_text() == "new\n"
    assert not Sidecars("skip").wants(row.image)
    for _ in range(2):  # who was interrupted runs the same command again
        Sidecars("append").write(Row(row.image, ["more", "two\nlines"], asked=2))
        assert text.read_text() == "new\nmore\ntwo lines\n"
    Sidecars("overwrite").write(row)
    assert text.read_text() == "new\n"
    Sidecars("overwrite").write(Row(row.image, error="broken"))
    assert text.read_text() == "new\n"


@pytest.mark.parametrize("order", [1, -1])
def test_two_pictures_of_one_stem_do_not_share_a_sidecar(tmp_path, order):
    """a.jpg and a.png both want a.txt: which got it depended on the order, and the other got none in a second run."""
    names = ["a.jpg", "a.png", "A.tif", "a.png.gif", "alone.jpg", "x", "x.jpg", "notes.dat", "z.txt"]
    for name in names:
        (tmp_path / name).touch()
    for _ in range(2):  # each run alone knows what the others wrote
        for name in names[::order]:
            sidecars = Sidecars("overwrite")
            assert sidecars.wants(tmp_path / name)
            sidecars.write(Row(str(tmp_path / name), [name]))
            sidecars.close()
    texts = {path.name: path.read_text() for path in tmp_path.glob("*.txt") if path.stat().st_size}
    longer = ["a.jpg", "a.png", "A.tif", "a.png.gif", "x", "x.jpg", "notes.dat", "z.txt"]
    assert texts == {f"{name}.txt": f"{name}\n" for name in longer} | {"alone.txt": "alone.jpg\n"}
    assert not any(Sidecars().wants(tmp_path / name) for name in names)


def sidecar(kind, text):
    return kind.change(b"", text)


@pytest.mark.parametrize("kind", [TEXT, XMP], ids=["txt", "xmp"])
def test_a_second_picture_of_a_name_sidelines_no_text(tmp_path, kind):
    """The a.txt of a.jpg, edited, gave way to an a.jpg.txt as soon as there was an a.png: training read that one."""
    edited, ending = tmp_path / f"a{kind.ending}", kind.ending
    edited.write_bytes(sidecar(kind, "edited"))
    for name in ("a.jpg", "a.png", "a.b"):
        (tmp_path / name).touch()
    for _ in range(2):
        with closing(Sidecars(kinds=[kind])) as sidecars:
            assert [sidecars.wants(tmp_path / name) for name in ("a.jpg", "a.png", "a.b")] == [False, False, True]
            (told,) = sidecars.notes
            assert f"a{ending}' ('a.jpg', 'a.png')" in told and f"a.jpg{ending}" in told
            assert sidecars.write(Row(str(tmp_path / "a.jpg"), ["new"])) is None
    assert not (tmp_path / f"a.jpg{ending}").exists()
    for existing, text in (("append", "edited\nnew"), ("prepend", "new\nedited"), ("overwrite", "new")):
        for _ in range(2):
            with closing(Sidecars(existing, [kind])) as sidecars:
                assert sidecars.wants(tmp_path / "a.png") and not sidecars.notes
                assert sidecars.write(Row(str(tmp_path / "a.png"), ["new"])) is None
            assert kind.read((tmp_path / f"a.png{ending}").read_bytes()).strip() == text
        if existing != "overwrite":
            (tmp_path / f"a.png{ending}").unlink()
    assert edited.read_bytes() == sidecar(kind, "edited")
    assert not Sidecars(kinds=[kind]).wants(tmp_path / "a.png")


def test_a_picture_that_is_alone_again_keeps_its_text(tmp_path):
    """Once a.png was gone, a.jpg was captioned anew in a.txt, beside its a.jpg.txt, which training reads."""
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.jpg.txt").write_text("edited\n")
    assert not Sidecars().wants(tmp_path / "a.jpg")
    with closing(Sidecars("append")) as sidecars:
        assert sidecars.write(Row(str(tmp_path / "a.jpg"), ["new"])) is None
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {"a.jpg.txt": "edited\nnew\n"}


def test_a_new_file_without_an_ending_sidelines_no_text(tmp_path, monkeypatch):
    """Only where it is named as a picture too is the text that bears its name its own."""
    for name in ("a", "a.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("edited\n")
    assert not Sidecars().wants(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    for names in (["a", "a.jpg"], [tmp_path / "a.jpg", "a"]):
        with closing(Sidecars(named=names)) as sidecars:
            assert {Path(name).name: sidecars.wants(name) for name in names} == {"a": False, "a.jpg": True}


def test_what_else_an_xmp_holds_goes_along_to_the_pictures_that_share_it(tmp_path):
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).touch()
    (tmp_path / "a.xmp").write_text(OTHERS.format(""), encoding="utf-8")
    with closing(Sidecars(kinds=[XMP])) as sidecars:
        assert sidecars.wants(tmp_path / "a.jpg")
        assert sidecars.write(Row(str(tmp_path / "a.jpg"), ["new"])) is None
    assert "xmp:Rating='5'" in (tmp_path / "a.jpg.xmp").read_text(encoding="utf-8")
    assert (tmp_path / "a.xmp").read_text(encoding="utf-8") == OTHERS.format("")


@pytest.mark.parametrize("existing", ["overwrite", "append"])
def test_a_link_that_pictures_share_is_not_followed(tmp_path, existing):
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).touch()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "a.txt").symlink_to("secret")
    with closing(Sidecars(existing)) as sidecars:
        assert "is a link" in sidecars.write(Row(str(tmp_path / "a.jpg"), ["x"]))
        (tmp_path / "secret").unlink()  # then it is nobody's text
        assert sidecars.write(Row(str(tmp_path / "a.jpg"), ["x"])) is None
        assert (tmp_path / "a.jpg.txt").read_text() == "x\n" and not (tmp_path / "secret").exists()


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_a_link_in_the_place_of_a_sidecar_is_not_followed(tmp_path, existing):
    (tmp_path / "a.txt").symlink_to("victim")
    sidecars = Sidecars(existing)
    assert "is a link" in sidecars.write(Row(str(tmp_path / "a.jpg"), ["x"]))
    sidecars.close()
    assert (tmp_path / "a.txt").is_symlink() and not (tmp_path / "victim").exists()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("fault", ["deleted", "replaced", "cut"])
def test_an_output_that_is_gone_is_no_success(tmp_path, rows, ending, fault):
    path = tmp_path / f"out.{ending}"
    writer = open_writer(path)
    writer.write(rows[0])
    if fault == "deleted":
        path.unlink()
    elif fault == "replaced":
        (tmp_path / "other").write_text("mine")
        (tmp_path / "other").replace(path)
    else:
        os.truncate(path, 0)
    told = {"deleted": "No such file", "replaced": "another file has taken", "cut": "has cut it"}[fault]
    with pytest.raises(UserError, match=told):
        writer.write(rows[1])
    writer.close()
    assert fault != "replaced" or path.read_text() == "mine"


def test_folders_are_let_go_of_where_few_files_may_be_open(tmp_path, monkeypatch):
    opened = []

    @contextmanager
    def few(folder):
        if len(opened) == 3:
            raise OSError(errno.EMFILE, "Too many open files")
        opened.append(folder)
        yield
        opened.remove(folder)

    monkeypatch.setattr("clipcap.captioning.held_folders.only_writer", few)
    sidecars = Sidecars()
    for number in range(10):
        (tmp_path / str(number)).mkdir()
        assert sidecars.write(Row(str(tmp_path / str(number) / "a.jpg"), ["x"])) is None
    sidecars.close()
    assert not opened and len(list(tmp_path.glob("*/a.txt"))) == 10


def test_lines_of_something_else_are_not_dropped(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"error": "of another program"}\n')
    open_writer(tmp_path / "a.jsonl").close()
    assert (tmp_path / "a.jsonl").read_text() == '{"error": "of another program"}\n'
    (tmp_path / "b.jsonl").write_text("{my notes")
    with pytest.raises(UserError, match="not a file of JSON lines"):
        open_writer(tmp_path / "b.jsonl")


def test_a_sidecar_that_cannot_be_written_says_why(tmp_path):
    (tmp_path / "a.txt").mkdir()
    assert "cannot be written" in Sidecars("overwrite").write(Row(str(tmp_path / "a.jpg"), ["x"]))


def test_a_sidecar_whose_name_would_be_too_long_fails_alone(tmp_path):
    """Two pictures of one stem have the longest sidecars: a.jpg.txt. That of such a name ended every run."""
    for ending in (".jpg", ".png"):
        (tmp_path / ("a" * 251 + ending)).touch()
    with closing(Sidecars()) as sidecars:
        image = tmp_path / ("a" * 251 + ".jpg")
        assert sidecars.wants(image)
        assert sidecars.write(Row(str(image), ["x"])) == "its .txt cannot be written (File name too long)"


def test_captions_are_put_in_front_once(tmp_path):
    """A second run would put the same caption in front again; one that another only begins with is another."""
    row, text = Row(str(tmp_path / "a.jpg"), ["a dog"]), tmp_path / "a.txt"
    for before, after in (
        ("", "a dog\n"),
        ("by me", "a dog\nby me"),
        ("a dogma\n", "a dog\na dogma\n"),
        ("a dog\nold\n",) * 2,
        ("a dog",) * 2,
    ):
        text.write_text(before)
        for _ in range(2):
            sidecars = Sidecars("prepend")
            assert sidecars.wants(row.image) and sidecars.write(row) is None
            sidecars.close()
            assert text.read_text() == after


OTHERS = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="some program">
 <r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <r:Description r:about="uuid:7" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating='5'><!-- mine -->
   <d:subject xmlns:d="http://purl.org/dc/elements/1.1/"><r:Bag><r:li>söme</r:li></r:Bag></d:subject>{}
  </r:Description>
 </r:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
NEW = '<d:description xmlns:d="http://purl.org/dc/elements/1.1/"><r:Alt>{}</r:Alt></d:description>'
DEFAULT, GERMAN = '<r:li xml:lang="x-default">{}</r:li>', "<r:li xml:lang='de-DE'>ein Hund</r:li>"


def description(path):
    """The description in an .xmp as another reader of XML finds it, without its place in the tree."""
    tree = ElementTree.parse(path)
    items = tree.findall(".//{http://purl.org/dc/elements/1.1/}description//{*}li")
    return {item.get("{http://www.w3.org/XML/1998/namespace}lang"): item.text for item in items}


def test_xmp_beside_a_picture(tmp_path):
    """The best caption is the description; and `--sidecar` shares the folder."""
    row = Row(str(tmp_path / "a.jpg"), ['<a> & "b" 🐢\nline\x00', "second"], asked=2)
    both = Sidecars(kinds=(TEXT, XMP))
    assert both.wants(row.image) and both.write(row) is None and not both.wants(row.image)
    both.close()
    assert description(tmp_path / "a.xmp") == {"x-default": '<a> & "b" 🐢\nline'}
    assert (tmp_path / "a.txt").read_text().splitlines()[1] == "second"
    (tmp_path / "a.txt").unlink()
    before = (tmp_path / "a.xmp").read_bytes()
    assert both.wants(row.image) and both.write(Row(row.image, ["other"])) is None  # only the .txt
    both.close()
    assert (tmp_path / "a.xmp").read_bytes() == before and (tmp_path / "a.txt").read_text() == "other\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", None),
        (NEW.format(DEFAULT.format("old")), NEW.format(DEFAULT.format("new"))),
        (NEW.format(GERMAN + DEFAULT.format("old")), NEW.format(GERMAN + DEFAULT.format("new"))),
        (NEW.format(GERMAN), NEW.format(DEFAULT.format("new") + GERMAN)),
        (NEW.format('<r:li xml:lang="x-default"/>'), NEW.format(DEFAULT.format("new"))),
        (NEW.format(""), None),
        ('<d:description xmlns:d="http://purl.org/dc/elements/1.1/"/>', None),
    ],
    ids=["none", "one", "two languages", "another language", "an empty one", "no item", "an empty element"],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_rest_of_an_xmp_stays_as_it_is(tmp_path, before, after, mark):
    """Guards against a file that is read and written anew, without its comments, prefixes and packet."""
    path, row = tmp_path / "a.xmp", Row(str(tmp_path / "a.jpg"), ["new"])
    path.write_text(mark + OTHERS.format(before), encoding="utf-8")
    for _ in range(2):
        assert Sidecars("overwrite", [XMP]).write(row) is None
        assert description(path)["x-default"] == "new"
        if after is not None:
            assert path.read_text(encoding="utf-8") == mark + OTHERS.format(after)
    content = path.read_text(encoding="utf-8")
    for kept in (
        "<!-- mine -->",
        "xmp:Rating='5'",
        "<r:li>söme</r:li>",
        'x:xmptk="some program"',
        '<?xpacket end="w"?>',
    ):
        assert kept in content


def test_a_description_is_respected(tmp_path):
    path, row = tmp_path / "a.xmp", Row(str(tmp_path / "a.jpg"), ["new"])
    path.write_text(OTHERS.format(NEW.format(DEFAULT.format("old"))), encoding="utf-8")
    assert not Sidecars("skip", [XMP]).wants(row.image)
    for existing, told in (("prepend", "new\nold"), ("append", "new\nold\nnew")):
        assert Sidecars(existing, [XMP]).write(row) is None
        assert description(path)["x-default"] == told
    path.write_text(OTHERS.format(""), encoding="utf-8")
    assert Sidecars("skip", [XMP]).wants(row.image)
    Image.new("RGB", (8, 8)).save(row.image, xmp=OTHERS.format(NEW.format(GERMAN)).encode())
    for _ in range(2):  # beside an .xmp with no more than a rating, and without one
        skipping = Sidecars("skip", [XMP])
        assert not skipping.wants(row.image) and Sidecars("overwrite", [XMP]).wants(row.image)
        assert "1 of the pictures" in skipping.notes[0] and "--existing overwrite" in skipping.notes[0]
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(("existing", "told"), [("append", "old\nnew\n"), ("prepend", "new\nold\n")])
def test_a_second_run_changes_nothing_behind_a_byte_order_mark(tmp_path, existing, told):
    """Windows' Notepad puts one in front, which made the first line another one, and then stood in the middle."""
    for before, after in (("old\n", told), (told, told), ("new\n", "new\n")):
        (tmp_path / "a.txt").write_text("\ufeff" + before, encoding="utf-8")
        assert Sidecars(existing).write(Row(str(tmp_path / "a.jpg"), ["new"])) is None
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "\ufeff" + after


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_a_caption_with_what_xml_cannot_hold_is_added_once(tmp_path, existing):
    for _ in range(3):
        assert Sidecars(existing, [XMP]).write(Row(str(tmp_path / "a.jpg"), ["a\x0bb"])) is None
        assert description(tmp_path / "a.xmp")["x-default"] == "ab"


def test_a_description_in_a_heic_is_respected(tmp_path, monkeypatch):
    """Guards against an opener that only the processes have which decode pictures for CLIP."""
    heif = pytest.importorskip("pillow_heif")
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    packet = OTHERS.format(NEW.format(DEFAULT.format("old"))).encode()
    heif.from_pillow(Image.new("RGB", (64, 64))).save(tmp_path / "a.heic", xmp=packet)
    assert xmp.embedded_description(tmp_path / "a.heic") == "old"


def test_a_pipe_by_the_name_of_a_picture_is_not_waited_for(tmp_path):
    """Guards against a description that is looked for in a pipe, into which nobody writes: --xmp hung."""
    pipe, found = tmp_path / "a.jpg", []
    os.mkfifo(pipe)
    reader = threading.Thread(
        target=lambda: found.extend((xmp.embedded_description(pipe), date_taken(pipe))), daemon=True
    )
    reader.start()
    reader.join(20)
    assert found == ["", None]


PLAIN = OTHERS.format("").encode()
IN_AN_ATTRIBUTE = PLAIN.replace(b"<r:Description", f'<r:Description xmlns:d="{xmp.DC}" d:description="mine"'.encode())


@pytest.mark.parametrize("packet", [PLAIN, PLAIN[:-60], b"<x/>", IN_AN_ATTRIBUTE], ids=["whole", "cut", "none", "form"])
def test_a_caption_from_before_xmp_is_respected(tmp_path, packet):
    """Guards against XMP that cannot be read, which took the caption of IPTC with it: the picture was captioned."""
    iptc = b"\x1c\x02\x78\0\x03old\0"
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, xmp=packet)
    start, rest = path.read_bytes()[:2], path.read_bytes()[2:]
    path.write_bytes(start + b"\xff\xed" + struct.pack(">H", len(block) + 2) + block + rest)
    assert xmp.embedded_description(path) == "old" and not Sidecars("skip", [XMP]).wants(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', "XML with a document type"),
        (b"<x/>", "XML, but not XMP"),
        (b"<x>", "not XML"),
        (b"\xff\xfe<\0", "not UTF-8 text"),
        (b'<?xml version="1.0" encoding="iso-8859-1"?><x/>', "not UTF-8 text"),
        (OTHERS.format('<d:description xmlns:d="http://purl.org/dc/elements/1.1/"/>' * 2).encode(), "two descriptions"),
        (b" " * (17 << 20), "larger than 16 MB"),
    ],
    ids=["document type", "no xmp", "cut", "utf-16", "latin-1", "two", "large"],
)
@pytest.mark.parametrize("existing", ["skip", "overwrite", "prepend"])
def test_an_xmp_that_cannot_be_changed_is_left(tmp_path, content, told, existing):
    (tmp_path / "a.xmp").write_bytes(content)
    sidecars = Sidecars(existing, [XMP])
    assert sidecars.wants(tmp_path / "a.jpg")
    assert told in sidecars.write(Row(str(tmp_path / "a.jpg"), ["new"]))
    sidecars.close()
    assert (tmp_path / "a.xmp").read_bytes() == content


def test_a_description_of_a_million_lines_is_read(tmp_path):
    """Each line was copied once more for each one behind it: 4 MB took minutes."""
    lines = b"a\n" * 1_000_000
    description = (
        b"<r:Description><d:description><r:Alt><r:li>" + lines + b"</r:li></r:Alt></d:description></r:Description>"
    )
    names = f'xmlns:x="adobe:ns:meta/" xmlns:r="{xmp.RDF}" xmlns:d="{xmp.DC}"'.encode()
    content = b"<x:xmpmeta " + names + b"><r:RDF>" + description + b"</r:RDF></x:xmpmeta>"
    assert xmp.description_of(content).encode() == lines.strip()


def test_a_table_with_long_captions_is_continued(tmp_path):
    """Python's reader of tables stops at 131,072 characters in a cell, which 40 long captions have."""
    path = tmp_path / "out.csv"
    write(path, [Row("a.jpg", [f"{number} {'x' * 4000}" for number in range(40)])])
    before = path.read_bytes()
    with closing(open_writer(path)) as writer:
        assert not writer.wants("a.jpg")
    assert path.read_bytes() == before


def test_a_description_behind_the_pixels_of_a_png_counts(tmp_path):
    """ExifTool puts it there."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    content, packet = (tmp_path / "a.png").read_bytes(), xmp.described(b"", "hers")
    chunk = b"iTXtXML:com.adobe.xmp" + bytes(5) + packet
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    end = content.rindex(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(content[:end] + chunk + content[end:])
    assert xmp.embedded_description(tmp_path / "a.png") == "hers"
