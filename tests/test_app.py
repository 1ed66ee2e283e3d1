"""The page of app.py: from an upload to training data, in Chromium and by the requests that a browser makes."""

import io
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from chromium import PROGRAM, Chromium
from PIL import Image

import app
import load_data
from clipcap.captioning.accepted import Accepted, keep
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.desk import IDLE, LINGER, Desk, loader
from clipcap.captioning.rows import Row
from clipcap.data.store import EmbeddingStore
from clipcap.devices import in_own_thread
from clipcap.errors import Interrupted, UserError
from clipcap.weights.checkpoint import load_checkpoint
from clipcap.weights.lora import inject, save_adapters
from clipcap.weights.places import Base
from clipcap.weights.published import resolve_weights
from clipcap.world.scenes import scenes
from clipcap.world.shipped import LITERAL

pytest.importorskip("gradio")
ROOT = Path(__file__).resolve().parent.parent
HOSTILE = ["<img src=x onerror=\"document.title='broken'\">", "**bold** [a](https://example.com)", "<b>b</b>"]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The page's address, with the demo's weights under two names."""
    args = app.PageArguments(weights=["demo", str(LITERAL)], port=free_port(), max_megabytes=1)
    with app.opened(args) as (address, _):
        yield address


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture whose EXIF says where it was taken, and that it lies on its side."""
    path = tmp_path / "my photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[1] = "N"
    next(scenes("test", 1)).draw().transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    return path


class Visitor:
    """A browser, as far as the server can tell."""

    def __init__(self, address: str) -> None:
        self.address, self.session = address.rstrip("/"), uuid.uuid4().hex
        self.config = json.loads(self.get("/config"))

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.address + path, timeout=20) as answer:
            return answer.read()

    def status(self, path: str, **request) -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(self.address + path, **request), timeout=20) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def post(self, path: str, body: bytes, kind: str = "application/json"):
        request = urllib.request.Request(self.address + path, body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def upload(self, content: bytes, name: str) -> dict:
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--x--\r\n"
        [path] = self.post("/gradio_api/upload", body, "multipart/form-data; boundary=x")
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def click(self, button: str, data: list, kind: str = "click") -> list:
        """What the components that depend on a button become. Raises AssertionError where the server failed."""
        target = next(part["id"] for part in self.config["components"] if part["props"].get("elem_id") == button)
        number = next(event["id"] for event in self.config["dependencies"] if [target, kind] in event["targets"])
        call = {"data": data, "fn_index": number, "session_hash": self.session, "trigger_id": target}
        self.post("/gradio_api/queue/join", json.dumps(call).encode())
        with urllib.request.urlopen(f"{self.address}/gradio_api/queue/data?session_hash={self.session}") as events:
            for line in events:
                message = json.loads(line[5:]) if line.startswith(b"data:") else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    return message["output"]["data"]
        raise AssertionError("no answer")

    def write(self, upload: dict | None, weights: str = "demo", **asked) -> tuple[str, list[str]]:
        """What the page says, and the captions to choose from."""
        self.click("photo", [upload], "input")
        values = [asked.get(name, "nucleus" if name == "method" else None) for name in app.CONTROLS]
        values = [value or ("keep" if name in ("hashtags", "emoji") else "" if name == "length" else value)
                  for name, value in zip(app.CONTROLS, values, strict=True)]  # fmt: skip
        message, choices, *_ = self.click("write", [upload, weights, *values])
        return message["value"], [value for _, value in choices["choices"]]


def trained_on(archive: bytes, folder: Path) -> EmbeddingStore:
    """What load_data.py makes of a download."""
    zipfile.ZipFile(io.BytesIO(archive)).extractall(folder / "accepted")
    all_train = "--val-fraction 0 --test-fraction 0"
    load_data.main(f"--source folder {folder}/accepted --clip demo --output {folder}/data {all_train}".split())
    return EmbeddingStore.open(folder / "data")


def test_from_upload_to_training_data(page: str, photo: Path, tmp_path: Path) -> None:
    """Guards against captions other than predict.py's, and a download that load_data.py does not take."""
    visitor = Visitor(page)
    upload = visitor.upload(photo.read_bytes(), "my photo.jpg")
    said, captions = visitor.write(upload, seed="3")
    assert said == "" and len(captions) == 3
    assert captions == Captioner.load("demo")([photo], num_captions=3, seed=3)[0]
    for text, rating in ((f"{captions[1]} edited 🐢", 4), ("a second caption\nof two lines", None)):
        said, download = visitor.click("accept", [text, captions[1], rating])
        assert said["value"] == ""
    archive = visitor.get(f"/gradio_api/file={download['value']['path']}")
    content = zipfile.ZipFile(io.BytesIO(archive))
    rows = [json.loads(line) for line in content.read("metadata.jsonl").splitlines()]
    assert rows[0]["written"] == captions[1] and rows[0]["weights"] == "demo" and rows[0]["rating"] == 4
    picture = Image.open(content.open(rows[0]["file_name"]))
    assert not picture.getexif() and picture.getpixel((5, 5))[2] > 100  # upright: the sky is at the top
    store = trained_on(archive, tmp_path)
    assert store.captions("train") == [f"{captions[1]} edited 🐢", "a second caption\nof two lines"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={LITERAL}",
        f"/gradio_api/file={ROOT}/app.py",
        "/gradio_api/file=app.py",
        "/gradio_api/file=..%2f..%2f..%2f..%2fetc/passwd",
        "/gradio_api/file=https://example.com/",
        "/gradio_api/file=file:///etc/passwd",
        "/gradio_api/proxy=https://example.com/",
        "/gradio_api/info",
        "/gradio_api/runs",
        "/static/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/assets/%2e%2e/%2e%2e/routes.py",
        "/monitoring",
        "/docs",
    ],
)
def test_no_file_of_the_server_is_given_out(page: str, path: str) -> None:
    """Guards against Gradio's own routes, which read files, fetch addresses and tell about other visitors."""
    assert Visitor(page).status(path) in (403, 404, 405)


def test_another_place_in_an_upload_is_refused(page: str, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a path, or an address to fetch, in place of what was uploaded."""
    fetched = []

    async def fetch(address: str, **_) -> str:
        fetched.append(address)
        return str(photo)

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    visitor = Visitor(page)
    for place in (str(photo), "/etc/passwd", "http://127.0.0.1:9/a.jpg", "https://example.com/a.jpg"):
        with pytest.raises(AssertionError, match="process_completed"):
            visitor.write({"path": place, "meta": {"_type": "gradio.FileData"}})
    assert fetched == [] and visitor.write(None) == ("there is no picture: upload one", [])


def huge_png() -> bytes:
    """30,000 x 30,000 black pixels of one bit."""
    row, squeeze = bytes(30_000 // 8 + 1), zlib.compressobj()
    data = b"".join(squeeze.compress(row) for _ in range(30_000)) + squeeze.flush()
    chunks = [(b"IHDR", (30_000).to_bytes(4) * 2 + bytes([1, 0, 0, 0, 0])), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4) for kind, body in chunks
    )


def test_what_is_no_picture_gets_one_sentence(page: str, photo: Path) -> None:
    """Guards against a traceback on the page, a page that goes down, and a format that starts other programs."""
    visitor = Visitor(page)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nquit\n"
    for content, told in (
        (b"no picture", "this picture cannot be used: not a picture"),
        (b"", "this picture cannot be used: empty file"),
        (eps, "this picture cannot be used: not a picture"),
        (huge_png(), "this picture cannot be used: too many pixels"),
        (photo.read_bytes()[:-700], "this picture cannot be used: truncated file"),
    ):
        said, captions = visitor.write(visitor.upload(content, "a.jpg"))
        assert said.startswith(told) and "\n" not in said and captions == []
    with pytest.raises(urllib.error.HTTPError, match="413"):
        visitor.upload(bytes(1_200_000), "a.jpg")
    assert len(visitor.write(visitor.upload(photo.read_bytes(), "a.jpg"))[1]) == 3


def test_impossible_options_get_one_sentence(page: str, photo: Path) -> None:
    visitor = Visitor(page)
    upload = visitor.upload(photo.read_bytes(), "a.jpg")
    assert "an upload has neither folder nor date" in visitor.write(upload, start_with="in {folder}")[0]
    assert "have not learned what length asks for" in visitor.write(upload, length="short")[0]
    assert "temperature must be from" in visitor.write(upload, temperature="1e9")[0]
    assert "max_chars must be a whole number, not 'many'" in visitor.write(upload, max_chars="many")[0]
    assert all("turtle" not in caption for caption in visitor.write(upload, ban="turtle, meadow")[1])
    assert "the caption is empty" in visitor.click("accept", [" ", None, None])[0]["value"]


class Fake:
    """A captioner whose captions are those of a stranger's weights."""

    def rows(self, images, *_, **__) -> Iterator[Row]:
        yield Row(str(images[0]), HOSTILE, asked=3)


@contextmanager
def strange(host: str | None = None) -> Iterator[tuple[str, Desk]]:
    """A page with the captions of a stranger's weights: its address and its desk."""
    from clipcap.captioning.visitors import private_folder, served

    with private_folder() as folder:
        desk = Desk(lambda name: Fake(), folder, None)
        with served(app.build(desk, ["demo"]), host, free_port(), False, 1) as address:
            yield address, desk


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come")


def test_a_session_outlives_its_connection_and_ends(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against pictures of strangers that stay, and a download that goes while its page is open."""
    with strange() as (address, desk):
        visitor = Visitor(address)
        with urllib.request.urlopen(f"{visitor.address}/gradio_api/heartbeat/{visitor.session}") as heartbeat:
            heartbeat.readline()
            uploads = [visitor.upload(photo.read_bytes(), f"{name}.jpg") for name in ("my", "mine")]
            first, second = (Path(upload["path"]) for upload in uploads)
            for upload in uploads:
                visitor.write(upload)
            assert second.exists() and not first.exists()
            visitor.click("accept", ["a caption", None, None])
        wait_for(lambda: desk.sessions[visitor.session].left)
        desk.sweep()
        assert second.exists()
        download = Path(visitor.click("accept", ["another one", None, None])[1]["value"]["path"])
        for file in (second, download):
            os.utime(file, (0, 0))
        desk.sweep()
        archive = zipfile.ZipFile(io.BytesIO(visitor.get(f"/gradio_api/file={download}")))
        assert len(archive.read("metadata.jsonl").splitlines()) == 2
        visitor.write(visitor.upload(photo.read_bytes(), "mine.jpg"))
        monkeypatch.setattr("clipcap.captioning.desk.LINGER", -1)
        desk.sweep()
        assert not (second.exists() or download.exists())


def test_pictures_that_came_in_part_go(photo: Path) -> None:
    """Guards against pictures of visitors who left in the middle of an upload, which stayed as long as the page."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    request = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with strange() as (address, desk):
        port = int(address.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request + b"Content-Length: 900000\r\n\r\n" + head + bytes(100_000))
            wait_for(lambda: any(file.is_file() and file.stat().st_size for file in desk.folder.iterdir()))
        never_told = Path(Visitor(address).upload(photo.read_bytes(), "a.jpg")["path"])
        wait_for(never_told.exists)
        desk.sweep()
        files = [file for file in desk.folder.rglob("*") if file.is_file()]
        assert len(files) == 2 and never_told in files  # another part of the first one may be on its way
        for file in files:
            os.utime(file, (time.time() - LINGER - 1,) * 2)
        desk.sweep()
        assert not [file for file in desk.folder.rglob("*") if file.is_file()]


def test_a_request_that_no_browser_sends_is_refused(page: str) -> None:
    """Guards against a disk that one upload of a thousand pictures fills, and memory that one long text does."""
    visitor = Visitor(page)
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%d.jpg"\r\n\r\n'
    several = b"".join(head % number + bytes(900_000) + b"\r\n" for number in range(3)) + b"--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert visitor.status("/gradio_api/upload", data=several, headers=kind) == 413
    assert visitor.status("/gradio_api/upload", data=iter([several]), headers=kind) == 413  # without its length
    call = json.dumps({"data": ["x" * 1_100_000, None, None], "fn_index": 0, "session_hash": "x"}).encode()
    assert visitor.status("/gradio_api/queue/join", data=call, headers={"Content-Type": "application/json"}) == 413


def test_a_folder_in_place_of_an_upload_harms_nobody(photo: Path, tmp_path: Path) -> None:
    """Guards against an error for the visitor in whose favour the session of such a one goes, and a file that stays."""
    desk = Desk(lambda name: Fake(), tmp_path, None)
    desk.captions("bad", str(photo), "demo", {})
    download, _ = desk.accept("bad", "a caption", None, None)
    desk.change("bad", str(tmp_path))
    for key in range(100):
        desk.change(str(key), None)
    assert "bad" not in desk.sessions and "99" in desk.sessions and not download.exists()


def test_a_session_stays_while_its_visitor_may_come_back(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against one that never ends, since no page tells of its end a second time."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("clipcap.captioning.desk.monotonic", lambda: clock.now)
    desk = Desk(lambda name: Fake(), tmp_path, None)
    desk.captions("open", str(photo), "demo", {})
    download, _ = desk.accept("open", "caption", None, None)
    for key in ("away", "back"):
        desk.change(key, None)
        desk.leave(key)
    left = []
    for now in (LINGER - 1, LINGER + 1, 2 * LINGER, IDLE, IDLE + 1):
        clock.now = now
        desk.sweep()
        left.append([*desk.sessions])
        if now == LINGER - 1:
            desk.change("back", None)
    assert left == [["open", "away", "back"], ["open", "back"], ["open"], ["open"], []]
    assert not (photo.exists() or download.exists())


@pytest.mark.parametrize("error", [None, "it cannot be read"])
def test_captions_of_a_picture_that_was_replaced_are_not_shown(error: str | None, photo: Path, tmp_path: Path) -> None:
    """Guards against captions beside another picture, and a picture accepted with the caption of another."""
    other = Path(shutil.copy(photo, tmp_path / "other.jpg"))

    class Slow:
        def rows(self, images, *_, **__) -> Iterator[Row]:
            desk.change("visitor", str(other))  # Gradio runs the two at the same time
            yield Row(str(images[0]), HOSTILE, error, asked=3)

    desk = Desk(lambda name: Slow(), tmp_path, None)
    desk.change("visitor", str(photo))
    for _ in range(2):  # it was changed while the captions were written, and while they waited in the queue
        with pytest.raises(UserError, match="the picture was changed while its captions were written"):
            desk.captions("visitor", str(photo), "demo", {})
    with pytest.raises(UserError, match="no picture with captions yet"):
        desk.accept("visitor", "caption", None, None)
    assert other.exists()


def test_only_threads_that_end_compute_beside_others(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against captions at half the speed, see `devices.in_own_thread`."""
    at_once = []

    class Fake:
        def rows(self, images, *_, **__) -> Iterator[Row]:
            threads.append(threading.current_thread())
            at_once.append(torch.get_num_threads())
            yield Row(str(images[0]), HOSTILE, asked=3)

    def load(*_, **__) -> Fake:
        at_once.append(torch.get_num_threads())
        return Fake()

    threads: list[threading.Thread] = []
    monkeypatch.setattr(Captioner, "load", load)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        desk = Desk(loader({"demo": "demo"}, None, "cpu", "int8", None, None), tmp_path, None)
        desk.captions("visitor", str(photo), "demo", {})
    finally:
        torch.set_num_threads(before)
    assert at_once == [1, 2] and not threads[0].is_alive()


def test_loads_beside_each_other_leave_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against one thread for every later caption: the load that ended last gave back what the other had left."""
    inside = threading.Semaphore(0)

    def load(*_, **__) -> Fake:
        inside.release()
        time.sleep(0.2)
        return Fake()

    monkeypatch.setattr(Captioner, "load", load)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        slow = loader({"first": "demo", "second": "demo"}, None, "cpu", "int8", None, None)
        beside = threading.Thread(target=lambda: inside.acquire() and slow("second"))
        beside.start()
        slow("first")
        beside.join()
        assert in_own_thread(torch.get_num_threads) == 2
    finally:
        torch.set_num_threads(before)


def test_two_visitors_may_have_the_same_picture(page: str, photo: Path) -> None:
    """Guards against an upload that goes with the first of its visitors: Gradio names files by their content."""
    first, second = Visitor(page), Visitor(page)
    upload = first.upload(photo.read_bytes(), "ours.jpg")
    assert second.upload(photo.read_bytes(), "ours.jpg") == upload
    for visitor in (first, second):
        assert visitor.write(upload)[0] == ""
    assert first.write(first.upload(photo.read_bytes(), "another name.jpg"))[0] == ""
    assert len(second.write(upload)[1]) == 3


def test_an_upload_goes_with_the_last_who_has_it(photo: Path, tmp_path: Path) -> None:
    """Guards against pictures that stay since nobody had them captioned, and a busy visitor who is the first to go."""
    desk = Desk(lambda name: Fake(), tmp_path, None)
    desk.change("first", str(photo))
    desk.captions("second", str(photo), "demo", {})
    for key in range(98):
        desk.change(str(key), None)
    desk.change("first", str(photo))
    desk.change("one more", None)
    assert "first" in desk.sessions and "second" not in desk.sessions and photo.exists()
    desk.leave("97")
    desk.change("and one more", None)
    assert "97" not in desk.sessions and "0" in desk.sessions  # whoever has left goes before whoever is slow
    desk.forget("first")
    assert not photo.exists()


def test_only_what_is_asked_to_be_kept_is_kept(photo: Path, tmp_path: Path) -> None:
    """Guards against a folder with a line but no picture, and a session whose memory never ends."""
    (tmp_path / "kept").mkdir()
    desk = Desk(lambda name: Fake(), tmp_path, tmp_path / "kept")
    for key in map(str, range(101)):
        desk.captions(key, str(photo), "demo", {}) if key == "0" else desk._session(key)
        if key == "0":
            desk.accept("0", "my caption", HOSTILE[0], 5)
    assert "0" not in desk.sessions and not photo.exists() and not list(tmp_path.glob("*/accepted.zip"))
    [row] = map(json.loads, (tmp_path / "kept" / "metadata.jsonl").read_text().splitlines())
    assert row["caption"] == "my caption" and (tmp_path / "kept" / row["file_name"]).is_file()
    table = tmp_path / "kept" / "metadata.jsonl"
    for before in (json.dumps(row), json.dumps(row) + "\n"):  # an editor may leave out the last line end
        table.write_text(before)
        keep(Accepted(b"", "another", "", "demo"), tmp_path / "kept")
        assert [json.loads(line)["caption"] for line in table.read_text().splitlines()] == ["my caption", "another"]
    with pytest.raises(UserError, match="no picture with captions yet"):
        desk.accept("1", "caption", None, None)


@pytest.mark.parametrize("kept", ["", "my posts"])
def test_the_end_of_the_page_says_what_is_kept(kept: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Guards against advice to run the same command again, to go on, after the Ctrl-C that the page asks for."""
    waits, sweeps = [], []

    class Pressed:
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            if len(waits) == 3:
                raise Interrupted("", signal.SIGTERM)
            return False

    desk = SimpleNamespace(sweep=lambda: sweeps.append("swept"))
    monkeypatch.setattr("app.opened", lambda args: nullcontext(("http://127.0.0.1:7860/", desk)))
    monkeypatch.setattr("app.threading.Event", Pressed)
    app.main(["--weights", "demo", *(["--keep", kept] if kept else [])])
    told = "what was accepted is in my posts" if kept else "nothing is kept"
    assert capsys.readouterr().out.splitlines()[1:] == [f"closing the page; {told}"]
    assert waits == [1, 1, 1] and sweeps == ["swept", "swept"]


def test_a_port_in_use_is_told_in_one_sentence() -> None:
    """Guards against a traceback, and against a page that comes up at another port than was asked for."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot be used, mostly because another program has it: choose another"):
            app.main(["--weights", "demo", "--port", str(taken.getsockname()[1])])


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "clipcap.captioning.visitors", raising=False)
    with pytest.raises(UserError, match="pip install gradio"), app.opened(app.PageArguments(weights=["demo"])):
        pass


@pytest.mark.parametrize("error", ["ImportError", "ValueError"])
def test_a_gradio_that_cannot_be_imported_says_why(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against advice to install what is there, where it refuses the proxy that the environment names."""
    (tmp_path / "gradio.py").write_text(f"raise {error}('Using SOCKS proxy without socksio.\\nInstall it.')")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("gradio", "clipcap.captioning.visitors"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    told = "the page needs Gradio, which cannot be imported: Using SOCKS proxy without socksio.$"
    with pytest.raises(UserError, match=told), app.opened(app.PageArguments(weights=["demo"])):
        pass


@pytest.mark.parametrize("host", [None, "::1"])
def test_the_page_asks_no_proxy_for_itself(host: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a traceback, or a page that never comes up, behind a proxy or at an IPv6 address."""
    if host:
        try:
            socket.create_server((host, 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this computer has no IPv6")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with strange(host) as (address, *_):
        assert address.startswith("http://[::1]:" if host else "http://127.0.0.1:")
        assert "NO_PROXY" not in os.environ and "no_proxy" not in os.environ


def test_a_page_that_cannot_be_reached_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a traceback for whatever else Gradio raises while it starts."""
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    with pytest.raises(UserError, match="the page cannot be served: When localhost is not accessible"), strange():
        pass


def test_lora_weights_on_a_base_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against advice to give --base, which app.py did not have, and a base for weights that have none."""
    base = shutil.copy(resolve_weights("demo"), tmp_path / "base.pt")
    model, lora = load_checkpoint(base), str(tmp_path / "lora_weights.pt")
    save_adapters(model, lora, Base.of(str(base)), inject(model, 2, 4, 0.0, ["c_attn"]))
    moved = base.rename(tmp_path / "moved.pt")
    monkeypatch.setattr("clipcap.captioning.visitors.served", lambda *_: nullcontext(""))
    with app.opened(app.PageArguments(weights=["demo", lora], base=str(moved), normalize=False)) as (_, desk):
        assert desk.load("lora").model.config == desk.load("demo").model.config
    monkeypatch.setattr("clipcap.weights.published._download", lambda name, target: pytest.fail(f"{name} is fetched"))
    with app.opened(app.PageArguments(weights=["demo", "coco", lora], base=str(moved), normalize=False)):
        pass  # nobody has chosen coco
    with pytest.raises(UserError, match="give it with --base"), app.opened(app.PageArguments(weights=[lora])):
        pass
    for weights in (["demo"], None):
        useless = app.PageArguments(weights=weights, base=str(moved))
        with pytest.raises(UserError, match="moved.pt is for LoRA weights, and none are named"), app.opened(useless):
            pass
    own = app.PageArguments(weights=["demo"], normalize=True)
    with pytest.raises(UserError, match="leave --normalize out"), app.opened(own):
        pass


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    if PROGRAM is None:
        pytest.skip("Chromium is not installed: the page is not looked at")
    with Chromium(tmp_path / "profile", tmp_path) as browser:
        yield browser


def choose_file(browser: Chromium, path: Path, replaced: bool = False) -> None:
    if replaced:
        browser.click("#photo button[aria-label='Remove Image']")
    browser.wait("!!document.querySelector('#photo input[type=file]')", 20)
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#photo input[type=file]")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    browser.wait("!!document.querySelector('#photo img')", 20)


CAPTION = "document.querySelector('#caption textarea').value"


def test_in_the_browser(page: str, photo: Path, browser: Chromium, tmp_path: Path) -> None:
    """Upload, three captions, edit, rate, download, load_data.py; on a phone too, and no other host is asked."""
    for width in (390, 1280):
        browser.open(page, width)
        choose_file(browser, photo)
        assert browser.run("document.documentElement.scrollWidth") <= width
    browser.run("[...document.querySelectorAll('button')].find(e => e.innerText.includes('Options')).click()")
    time.sleep(0.5)  # what nobody has filled in must not count as 0, as Gradio's numbers do once they are in sight
    browser.click("#write")
    browser.wait("document.querySelectorAll('#choices input').length === 3", 20)
    second = browser.run("document.querySelectorAll('#choices input')[1].value")
    browser.click("#choices label:nth-child(2)")
    browser.wait(f"{CAPTION} === {json.dumps(second)}")
    browser.click("#caption textarea")
    browser.call("Input.insertText", text=" in my words")
    browser.click("#rating label:nth-child(5)")
    browser.click("#accept")
    browser.wait("document.querySelector('#download').innerText.includes('Download 1')", 20)
    edited = browser.run(CAPTION)
    browser.click("#download")
    file = tmp_path / "accepted.zip"
    while not file.exists():  # downloads appear whole
        time.sleep(0.05)
    choose_file(browser, photo.rename(tmp_path / "other.jpg"), replaced=True)
    browser.wait("document.querySelectorAll('#choices input').length === 0")  # they were those of the other picture
    browser.click("#accept")
    browser.wait(
        "(document.querySelector('#message textarea') || {value: ''}).value.startsWith('there is no picture with')"
    )
    assert "in my words" in edited and trained_on(file.read_bytes(), tmp_path).captions("train") == [edited]
    assert all(url.startswith((page, "data:", "blob:")) for url in browser.requests) and browser.errors == []


def test_captions_of_strangers_are_text(photo: Path, browser: Chromium) -> None:
    """Guards against weights whose captions run scripts, or become links, in a visitor's browser."""
    with strange() as (address, *_):
        browser.open(address)
        choose_file(browser, photo)
        browser.click("#write")
        browser.wait("document.querySelectorAll('#choices input').length === 3", 20)
        shown = browser.run("[...document.querySelectorAll('#choices label')].map(e => e.innerText.trim())")
        assert shown == HOSTILE and browser.run(CAPTION) == HOSTILE[0]
        assert browser.run("document.title") == "Captions" and not browser.run("!!document.querySelector('#choices a')")


def test_a_page_has_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against eight processes that ask for the same port."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="start it without torchrun"), app.opened(app.PageArguments(weights=["demo"])):
        pass
