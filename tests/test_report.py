"""The report: its table, its page, and the blind rating mode, driven in a headless browser where there is one."""

import json
import re
import time
from html import unescape

import pytest
from chromium import PROGRAM, Chromium
from PIL import Image
from test_files import file_size_limit

from clipcap.errors import UserError
from clipcap.evaluation.measures import amount, duration
from clipcap.evaluation.ratings import add_ratings, summary
from clipcap.evaluation.report import markdown, read_report, rewrite_tables, text_table, write_report

NAMES = ["base", "lora_4", "<em>&\"prompted'|"]
CAPTIONS = ["<script>document.title = 'broken'</script> 😍 #sun", "a dog\non a beach", "#" + "long" * 40]


def make_report() -> dict:
    images = [{"id": f'image "{number}" <i>', "captions": [f"true & <u>{number}</u>"]} for number in range(5)]
    models = [
        {
            "name": name,
            "weights": f"runs/{number}_weights.pt",
            "scores": {"strategy": name, "trained_parameters": 10**number, "loss": 1.5 - number, "bleu_4": 0.5},
            "losses": [{"step": step, "train_loss": 2 / step} for step in (1, 2, 3)],
            "captions": [CAPTIONS[(number + image) % 3] for image in range(5)],
        }
        for number, name in enumerate(NAMES)
    ]
    data = {"folder": "instagram_data", "split": "test", "identity": "ab" * 32, "images": 5, "captions": 5}
    decoding = {"method": "greedy", "max_tokens": 67}
    failed = {"<hr>": "it holds | and <hr>"}
    versions = {"python": "3.12.1"}
    return {"format": 1, "data": data, "decoding": decoding, "versions": versions} | {
        "models": models,
        "failed": failed,
        "images": images,
    }


@pytest.fixture
def folder(tmp_path):
    pictures = [Image.new("RGB", (60, 40), colour) for colour in ("red", "green", "blue", "gold")]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.jpg")
    write_report(make_report(), tmp_path, [(tmp_path / f"{number}.jpg").read_bytes() for number in range(4)] + [None])
    return tmp_path


def test_broken_picture_leaves_a_gap_and_not_a_traceback(tmp_path):
    write_report(make_report(), tmp_path, [b"no picture", str(tmp_path / "gone.jpg"), None])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count('<div class="none">no picture</div>') == 3 and ' data-order="' not in html


def test_full_disk_leaves_the_last_report_whole(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with file_size_limit(4000), pytest.raises(OSError):
        write_report(make_report() | {"more": "x" * 10_000}, folder, [])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_table_marks_the_best():
    """Which end is better depends on the row; what reads the same is equally good; a missing value is no zero."""
    report = make_report()
    report["models"][2]["scores"]["loss"] = None
    lines = {line.split("  ")[0]: line for line in text_table(report).splitlines()}
    assert re.findall(r"\S+", lines["test loss"])[2:] == ["1.500", "0.500*", "–"]
    assert re.findall(r"\S+", lines["trained parameters"])[2:] == ["1*", "10", "100"]
    assert "*" not in lines["BLEU-4"] and "ROUGE-L" not in lines
    assert "| test loss | 1.500 | **0.500** | – |" in markdown(report)


def test_units():
    assert [amount(number) for number in (7, 999, 1234, 124_439_808, 1.5e9)] == ["7", "999", "1.23 k", "124 M", "1.5 G"]
    assert [amount(number) for number in (999.4, 999.6, 999_600, 999_600_000)] == ["999", "1 k", "1 M", "1 G"]
    assert [duration(seconds) for seconds in (1.234, 59.9, 75, 4000)] == [
        "1.23 s",
        "59.9 s",
        "1 min 15 s",
        "1 h 06 min",
    ]


def test_markdown_is_a_table_whatever_the_names(folder):
    """A | in a name would shift every column of its row."""
    rows = [line for line in (folder / "report.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "<hr>" not in "".join(rows)
    report = make_report() | {"failed": {"theirs": "no ![](https://example.com/t.png)"}}
    assert r"- theirs failed: no !\[\](https\://example.com/t.png)" in markdown(report)


def test_page_is_escaped_and_self_contained(folder):
    """Captions and names come from strangers; the page must open from a mail attachment without a network."""
    html = (folder / "report.html").read_text(encoding="utf-8")
    outside = html.replace("http://www.w3.org/", "")  # names of SVG, never fetched
    assert not re.search(r"https?://|@import|url\((?!#)|(src|href)=\"(?!data:|#)", outside)
    for raw in (CAPTIONS[0], "<em>", "<u>", "<i>", "<hr>"):
        assert raw not in html
    assert html.count('<img src="data:image/jpeg') == 4 and "no picture" in html


def test_each_card_shows_the_captions_of_its_picture(folder):
    """Guards against a model's caption beside another picture."""
    html, report = (folder / "report.html").read_text(encoding="utf-8"), make_report()
    cards = re.findall(r'<figure class="card" data-image="(.*?)"(.*?)</figure>', html, re.DOTALL)
    for number, (image, (name, card)) in enumerate(zip(report["images"], cards, strict=True)):
        shown = [unescape(caption) for caption in re.findall(r'<dd dir="auto">(.*?)</dd>', card, re.DOTALL)]
        assert unescape(name) == image["id"]
        assert shown == [*image["captions"], *(model["captions"][number] for model in report["models"])]


def test_blind_order_is_shuffled_and_fixed(folder):
    """The first caption must not always be the first model's; a rater who comes back must find the same order."""
    html = (folder / "report.html").read_text(encoding="utf-8")
    orders = re.findall(r'data-order="([\d ]+)"', html)
    assert len(orders) == 4 and len(set(orders)) > 1
    report = read_report(folder)
    write_report(report, folder, [(folder / f"{number}.jpg").read_bytes() for number in range(4)])
    assert re.findall(r'data-order="([\d ]+)"', (folder / "report.html").read_text(encoding="utf-8")) == orders


def test_rating_summary():
    """The interval is over pictures: asking five people about one picture is not five pictures."""
    assert summary([[3, 3], [3], [3]]) == {"mean": 3, "low": 3, "high": 3}
    half = summary([[0], [5]] * 200)  # a standard error of 0.125, of which 95% are within 1.96
    assert half["low"] == pytest.approx(2.5 - 1.96 * 0.125, abs=0.02)
    assert half["high"] == pytest.approx(2.5 + 1.96 * 0.125, abs=0.02)
    few, many = summary([[0], [5], [3], [4]]), summary([[0], [5], [3], [4]] * 25)
    assert few["mean"] == many["mean"] == 3 and few["low"] < many["low"] < 3 < many["high"] < few["high"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not JSON that can be read"),
        ("[1]", "is not a ratings.json"),
        ('{"report": "ID", "ratings": {"x": {}, "x": {}}}', "the key 'x' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"report": "ID", "ratings": {"image \\"0\\" <i>": {"base": true}}}', "from 0 to 5"),
        ('{"report": "0", "ratings": {}}', "another report"),
        ('{"report": "ID", "ratings": {"x": {"base": 3}}}', "'x' by model 'base'"),
        ('{"report": "ID", "ratings": {"image \\"0\\" <i>": {"coco": 3}}}', "by model 'coco'"),
        ('{"report": "ID", "ratings": {"image \\"0\\" <i>": {"base": 7}}}', "from 0 to 5"),
    ],
)
def test_ratings_of_something_else(folder, content, message):
    report = read_report(folder)
    (folder / "ratings.json").write_text(content.replace("ID", report["id"]))
    with pytest.raises(UserError, match=re.escape(message) if "'" in message else message):
        add_ratings(report, [folder / "ratings.json"])


def test_several_people_rate(folder):
    report = read_report(folder)
    image = report["images"][0]["id"]
    for number, rating in enumerate((2, 5)):
        content = {"report": report["id"], "ratings": {image: {"base": rating}}}
        (folder / f"{number}.json").write_text(json.dumps(content))
    add_ratings(report, [folder / "0.json", folder / "1.json"])
    rewrite_tables(report, folder)
    assert report["models"][0]["scores"]["rating"]["mean"] == 3.5
    assert report["models"][1]["scores"]["rating"] is None
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "3.50 (3.50 to 3.50)" in html and html.count("<table>") == 1 and html.count("data:image/jpeg") == 4


@pytest.fixture
def browser(tmp_path):
    if PROGRAM is None:
        pytest.skip("Chromium is not installed: the page is not looked at")
    with Chromium(tmp_path / "profile", tmp_path) as browser:
        yield browser


def test_a_wide_table_shows_that_it_scrolls(folder, browser, tmp_path):
    """Guards against models that nobody finds on a phone: a shade at the edge says that there is more behind it."""

    def edge() -> int:
        x, y = browser.run(
            "(box => [box.right - 3, box.top + 8])(document.querySelector('.scroll').getBoundingClientRect())"
        )
        browser.screenshot(tmp_path / "page.png")
        return sum(Image.open(tmp_path / "page.png").convert("RGB").getpixel((int(x), int(y))))

    browser.open((folder / "report.html").as_uri(), 390)
    more = edge()
    browser.run("document.querySelector('.scroll').scrollLeft = 9999")
    browser.wait("document.querySelector('.scroll').scrollLeft > 0")
    assert more < 700 < edge()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("hash", ["", "#rate"])
def test_page_fits(folder, browser, width, hash):
    """Nothing runs out of a phone's screen (the table scrolls by itself), nothing is fetched, nothing fails."""
    browser.open((folder / "report.html").as_uri() + hash, width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.title") == "3 models compared"
    assert all(url.startswith(("file:", "data:")) for url in browser.requests) and browser.errors == []
    heights = browser.run("[...document.querySelectorAll('.button, .scale span')].map(e => e.offsetHeight)")
    assert all(height == 0 or height >= 44 for height in heights)  # 0: hidden; less than 44: too small for a finger


def test_rating_and_saving(folder, browser):
    """By mouse and by keyboard, through a reload, to the file that evaluate.py reads."""
    page = (folder / "report.html").as_uri()
    browser.open(page)
    browser.click("a[href='#rate']")
    browser.wait("!document.getElementById('results').checkVisibility()")  # no model's name in sight
    visible = browser.run("document.getElementById('rate').innerText")
    assert "base" not in visible and "lora" not in visible and "true" not in visible
    assert browser.run("document.getElementById('save').disabled")

    browser.click("#captions fieldset:nth-child(1) input[value='4']")
    browser.run("document.activeElement.blur()")
    for key in "50":
        browser.press(key)  # the captions that are still open, one after the other
    assert browser.run("document.getElementById('count').textContent") == "1 of 4 rated"
    browser.press("3")  # nothing is open: a rating must not change by a stray key
    assert browser.run("document.activeElement.id") == "next"
    browser.press("Enter")
    browser.wait("document.getElementById('picture').alt === 'picture 2 of 4'")
    browser.press("2")

    browser.open("about:blank")
    browser.open(page + "#rate")  # comes back to the first picture that is not finished
    assert browser.run("document.getElementById('picture').alt") == "picture 2 of 4"
    assert browser.run("document.querySelectorAll('#captions :checked').length") == 1
    browser.press("p")
    chosen = "[...document.querySelectorAll('#captions :checked')].map(e => e.value).join('')"
    assert browser.run(chosen) == "450"

    browser.click("#save")
    file = folder / "ratings.json"
    while not file.exists():  # downloads appear whole
        time.sleep(0.05)
    report = read_report(folder)
    add_ratings(report, [file])
    ratings = json.loads(file.read_text(encoding="utf-8"))["ratings"]
    assert [len(models) for models in ratings.values()] == [3, 1]
    order = re.search(r'data-order="([\d ]+)"', (folder / "report.html").read_text(encoding="utf-8")).group(1)
    names = [NAMES[int(index)] for index in order.split()]
    assert ratings[report["images"][0]["id"]] == dict(zip(names, (4, 5, 0), strict=True))
    assert browser.errors == []


def test_equal_captions_are_rated_once(tmp_path, browser):
    """Two models that say the same must get the same rating, without asking twice."""
    report = make_report()
    for model in report["models"][:2]:
        model["captions"][0] = "the same"
    Image.new("RGB", (60, 40)).save(tmp_path / "0.jpg")
    write_report(report, tmp_path, [(tmp_path / "0.jpg").read_bytes()])
    browser.open((tmp_path / "report.html").as_uri() + "#rate")
    assert browser.run("document.querySelectorAll('fieldset').length") == 2
    for key in "33":
        browser.press(key)
    assert browser.run("document.getElementById('count').textContent") == "1 of 1 rated"
    stored = browser.run(f"localStorage.getItem('clipcap-ratings-{read_report(tmp_path)['id']}')")
    assert set(json.loads(stored)[report["images"][0]["id"]]) == set(NAMES)


def test_two_tabs_keep_each_others_ratings(folder, browser):
    """Guards against a tab that writes back what it read before the other one rated."""
    browser.open((folder / "report.html").as_uri() + "#rate")
    report = read_report(folder)
    key, image = f"clipcap-ratings-{report['id']}", report["images"][1]["id"]
    theirs = json.dumps({image: dict.fromkeys(NAMES, 4)})
    browser.run(f"localStorage.setItem({json.dumps(key)}, {json.dumps(theirs)})")
    browser.run(f"window.dispatchEvent(new StorageEvent('storage', {{key: {json.dumps(key)}}}))")
    assert browser.run("document.getElementById('count').textContent") == "1 of 4 rated"
    browser.press("5")
    stored = json.loads(browser.run(f"localStorage.getItem({json.dumps(key)})"))
    assert stored.keys() == {image, report["images"][0]["id"]}
