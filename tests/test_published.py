"""Published weights: what comes over the network is weights, whole, and the same as before, or it is not kept."""

import hashlib
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
import torch
from tiny import tiny_model

from clipcap.errors import UserError
from clipcap.weights import published
from clipcap.weights.published import cache_folder, resolve_weights


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "weights.pt"
    torch.save(tiny_model().state_dict(), path)
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPCAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def drive(monkeypatch):
    """A server that sends what a test puts into `drive.content`, behind a gdown that fetches from it as the real one.

    The real one leaves its unfinished files beside the one that it was to write.
    """
    drive = SimpleNamespace(content=b"", asked=[], announced=None, folder=["base_weights.pt", "x.pt"])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            drive.asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(drive.announced or len(drive.content)))
            self.end_headers()
            self.wfile.write(drive.content)

        def log_message(self, *_):
            pass

    def download(id, output, timeout):
        assert timeout == published.SILENCE, "without one, a server that falls silent is waited for without end"
        with urlopen(f"{drive.address}/{id}") as answer, open(f"{output}.unfinished.part", "wb") as file:
            file.write(answer.read())
        with open(f"{output}.unfinished.part", "rb") as file, open(output, "wb") as target:
            target.write(file.read())
        return output

    def download_folder(id, skip_download, quiet, timeout):
        assert skip_download and timeout == published.SILENCE
        return [SimpleNamespace(id=f"id-of-{name}", path=f"a/{name}") for name in drive.folder]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    drive.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download, download_folder=download_folder))
    for proxy in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield drive
    server.shutdown()
    server.server_close()


PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda good: PAGE, "a web page came"),
        (lambda good: b"\n  <html>" + bytes(100), "a web page came"),
        (lambda good: good[: len(good) // 2], "incomplete"),
        (lambda good: good[:-1], "incomplete"),
        (lambda good: b"", "nothing came"),
        (lambda good: b"\x00" * 5000, "incomplete"),
    ],
    ids=["page", "page with spaces", "half", "all but a byte", "empty", "zeros"],
)
@pytest.mark.parametrize("name", ["coco", "instagram-base"])
def test_what_is_no_whole_file_of_weights_never_stays(cache, drive, good, content, told, name):
    drive.content = content(good)
    for _ in range(2):  # the second time too
        with pytest.raises(UserError, match=f"{told}.*https://drive.google.com/.*save it as {cache}") as caught:
            resolve_weights(name)
        assert "\n" not in str(caught.value) and list(cache.iterdir()) == []
    drive.content = good
    assert resolve_weights(name).read_bytes() == good


def test_a_connection_that_breaks_leaves_nothing(cache, drive, good):
    drive.content, drive.announced = good[:1000], len(good)
    with pytest.raises(UserError, match="could not be downloaded"):
        resolve_weights("coco")
    assert list(cache.iterdir()) == []


def test_a_download_that_raises_leaves_nothing(cache, drive, monkeypatch):
    def refused(id, output, timeout):
        with open(output, "wb") as file:
            file.write(b"some")
        raise PermissionError("Cannot retrieve the public link of the file.\nYou may need to change the permission.")

    monkeypatch.setattr(sys.modules["gdown"], "download", refused)
    with pytest.raises(UserError, match=r"; Google Drive: Cannot retrieve .* file\.\); download") as caught:
        resolve_weights("conceptual")
    assert "\n" not in str(caught.value) and list(cache.iterdir()) == []


def test_a_download_is_fetched_once_and_recognised_afterwards(cache, drive, good):
    drive.content = good
    for _ in range(2):
        assert resolve_weights("coco").read_bytes() == good
    assert drive.asked == [f"/{published.WEIGHTS['coco'].drive_id}"]
    note = (cache / "coco_weights.pt.sha256").read_text()
    assert note == f"{hashlib.sha256(good).hexdigest()}  coco_weights.pt\n"  # the form of sha256sum
    assert sorted(path.name for path in cache.iterdir()) == ["coco_weights.pt", "coco_weights.pt.sha256"]


@pytest.mark.parametrize(
    ("name", "listed", "fetched"),
    [
        ("instagram-base", "Base_weights.pt LoRA_4_weights.pt", "Base_weights.pt"),
        ("instagram-base", "base_weights_final.pt x.txt", "base_weights_final.pt"),
        ("instagram-base", "BASE_WEIGHTS.pt base_weights_final.pt", "BASE_WEIGHTS.pt"),
        ("instagram-lora_4", "LoRA_4_weights.pt LoRA_16_weights.pt", "LoRA_4_weights.pt"),
        (
            "instagram-base",
            "base_old.pt base_new.pt",
            r"lists several files like base_weights.pt, but base_new.pt, base_",
        ),
        (
            "instagram-frozen",
            "Base_weights.pt notes.txt",
            r"lists no frozen_weights.pt, but Base_weights.pt, notes.txt",
        ),
        ("instagram-frozen", "", "lists no frozen_weights.pt, but nothing at all"),
    ],
)
def test_files_on_the_drive_are_found_as_they_are_spelled(cache, drive, good, name, listed, fetched):
    """Guards against "base_weights.pt" that is not found because it is there as "Base_weights.pt"."""
    drive.content, drive.folder = good, listed.split()
    if fetched.endswith(".pt"):
        assert resolve_weights(name).read_bytes() == good
        assert drive.asked == [f"/id-of-{fetched}"]
    else:
        with pytest.raises(UserError, match=fetched):
            resolve_weights(name)


def test_a_file_that_changed_in_the_cache_is_refused(cache, drive, good):
    drive.content = good
    path = resolve_weights("coco")
    path.write_bytes(good[:-1] + b"!")
    with pytest.raises(UserError, match="not the file that was first used.*delete both"):
        resolve_weights("coco")
    path.unlink()
    assert resolve_weights("coco").read_bytes() == good  # and it is checked against the same note
    (cache / "coco_weights.pt.sha256").unlink()
    resolve_weights("coco")
    assert (cache / "coco_weights.pt.sha256").is_file()


def test_a_page_saved_by_hand_is_refused_and_not_remembered(cache, good):
    """Otherwise the right file would be refused afterwards."""
    cache.mkdir()
    path = cache / "coco_weights.pt"
    path.write_bytes(PAGE)
    with pytest.raises(UserError, match=f"delete it, then download coco_weights.pt .*{path}"):
        resolve_weights("coco")
    path.write_bytes(good)
    assert resolve_weights("coco") == path


def test_a_published_sum_is_compared(cache, drive, good, monkeypatch):
    drive.content = good
    right = hashlib.sha256(good).hexdigest()
    for wanted in ("0" * 64, right):
        changed = published.Published("coco_weights.pt", "id", "about", sha256=wanted)
        monkeypatch.setitem(published.WEIGHTS, "coco", changed)
        if wanted == right:
            assert resolve_weights("coco").is_file()
        else:
            with pytest.raises(UserError, match="its authors published 0000"):
                resolve_weights("coco")
            assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"CLIPCAP_CACHE": "~/weights"}, "home/weights"),
        ({"CLIPCAP_CACHE": ""}, "home/.cache/clipcap"),
        ({"XDG_CACHE_HOME": ""}, "home/.cache/clipcap"),
        ({"XDG_CACHE_HOME": "~/other"}, "home/other/clipcap"),
        ({}, "home/.cache/clipcap"),
    ],
)
def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch, variables, wanted):
    for name in ("CLIPCAP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == tmp_path / wanted


def test_a_machine_without_a_home_folder_is_told_of_the_variable(monkeypatch):
    """Guards against a traceback in a container whose user has no entry in /etc/passwd."""
    for name in ("CLIPCAP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it does where no home is known
    with pytest.raises(UserError, match="no home folder is known for '~/.cache/clipcap': say with CLIPCAP_CACHE"):
        resolve_weights("coco")
