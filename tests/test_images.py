"""Guards the way from a file to pixels: the same pixels as open_clip, every kind of file, nothing that stops a run."""

import io
import os
import signal
import struct
import subprocess
import sys
import zlib
from base64 import b64decode
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from clipcap.clip import upright
from clipcap.clip.images import UnreadableImage, date_taken, find_images, load_pixels, open_file, open_image
from clipcap.clip.preprocessing import Preprocessing
from clipcap.clip.workers import _start, _submit, pixel_batches
from clipcap.data.embed import _thumbnail
from clipcap.errors import UserError
from clipcap.page import picture_uri, small_jpeg


def picture(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right, brighter downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([255 - x, y, x], axis=-1).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_equal_open_clips_own_transform(mode, size, interpolation):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    preprocessing = Preprocessing(size=size, resize_mode=mode, interpolation=interpolation, mean=(0,) * 3, std=(1,) * 3)
    transform = image_transform_v2(
        PreprocessCfg(size=size, resize_mode=mode, interpolation=interpolation, mean=(0,) * 3, std=(1,) * 3),
        is_train=False,
    )
    noise = np.random.default_rng(0).integers(0, 256, (201, 333, 3), dtype=np.uint8)
    for box in [(0, 0, 333, 201), (0, 0, 100, 201), (0, 0, 20, 20), (0, 0, 32, 32), (0, 0, 47, 33)]:
        image = Image.fromarray(noise).crop(box)
        theirs = (transform(image) * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(preprocessing.pixels(image), theirs)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_by_exif(tmp_path, orientation):
    """Phones store photos lying on their side."""
    undo = {5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    undo |= {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM"}
    upright = picture()
    stored = upright.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    opened = open_image(tmp_path / "a.png")
    for seen in (opened, open_image(opened), Image.open(io.BytesIO(b64decode(picture_uri(opened).split(",")[1])))):
        assert seen.size == upright.size
        assert np.abs(np.asarray(seen).astype(int) - np.asarray(upright)).mean() < (1 if seen is opened else 5)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("ending", "mode"),
    [("tif", "RGB"), ("tif", "L"), ("tif", "RGBA"), ("jpg", "RGB"), ("png", "RGB"), ("webp", "RGB")],
)
@pytest.mark.parametrize("min_side", [None, 20])
def test_a_picture_is_turned_once_in_every_format(tmp_path, orientation, ending, mode, min_side):
    """Pillow turns a TIFF itself while it loads it: it was turned again. And Pillow scrambles those that it maps."""
    exif, path = Image.Exif(), tmp_path / f"a.{ending}"
    exif[0x0112] = orientation
    picture(mode=mode).save(path, exif=exif)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        if min_side and ending == "jpg":
            assert image.draft("RGB", (min_side, min_side)) and image.size == (32, 24)
        whole = ImageOps.exif_transpose(image).convert("RGB")
    assert whole.size[orientation > 4] > whole.size[orientation <= 4]
    opened = [open_image(source, min_side) for source in (path, path.read_bytes())]
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        opened += [open_image(image)] * (min_side is None)
    for seen in opened:
        np.testing.assert_array_equal(np.asarray(seen), np.asarray(whole))
        assert seen.getexif().get(0x0112, 1) == 1


def test_no_copy_of_a_picture_names_its_owner(tmp_path):
    """Pillow writes the comment of the JPEG that it has read into every JPEG that it writes."""
    picture().save(tmp_path / "a.jpg", comment=b"Anna, 12 Elm St")
    opened = open_image(tmp_path / "a.jpg")
    assert opened.info["comment"]
    assert b"Elm" not in small_jpeg(opened, 32) + _thumbnail(opened)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    grey = np.linspace(0, 255, 64 * 48).reshape(48, 64)
    if mode == "I;16":
        image = Image.fromarray((grey * 257).astype(np.uint16))
    elif mode == "I":
        image = Image.fromarray((grey * 257).astype(np.int32))
    elif mode == "F":
        image = Image.fromarray((grey / 255).astype(np.float32))
    else:
        image = picture(mode=mode)
    assert image.mode == mode
    opened = open_image(image)
    assert opened.mode == "RGB" and opened.size == (64, 48)
    assert np.ptp(np.asarray(opened)) > 150  # neither clipped nor black


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    """Pillow's own conversion clips 16-bit grey to white."""
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png")).mean() == pytest.approx(128, abs=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(tmp_path, mode):
    """A logo on a transparent ground became a logo on black."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.convert(mode).save(tmp_path / "a.png", **({"transparency": 0} if mode == "P" else {}))
    assert np.asarray(open_image(tmp_path / "a.png")).min() == 255


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA"])
def test_transparent_pictures_are_composed_strip_by_strip(mode, monkeypatch):
    """Guards against strips that do not meet, and against four bytes for each of a large palette picture's pixels."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 9, 4), np.uint8), "RGBA")
    if mode == "P":
        picture = picture.convert("RGB").quantize(16)
        picture.info["transparency"] = bytes(range(0, 256, 16))
    else:
        picture = picture.convert(mode)
    monkeypatch.setattr(upright, "STRIP", 7)
    rgba = picture.convert("RGBA")
    compose, heights = Image.alpha_composite, []
    whole = compose(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    monkeypatch.setattr(Image, "alpha_composite", lambda a, b: heights.append(a.height) or compose(a, b))
    assert open_image(picture).tobytes() == whole.tobytes()
    assert len(heights) == 15 and max(heights) == 7


def test_a_jpeg_of_endless_scans_is_refused(tmp_path):
    """Each scan costs a pass over all pixels, in a few bytes of the file: 100 KB would take minutes."""
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    assert open_image(content).size == (256, 256)
    (tmp_path / "a.jpg").write_bytes(content[:-2] + 100 * last + content[-2:])
    for source in (tmp_path / "a.jpg", (tmp_path / "a.jpg").read_bytes()):
        with pytest.raises(UnreadableImage, match="a progressive JPEG of more than 100 scans"):
            open_image(source)


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert np.asarray(open_image(tmp_path / name))[0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)


def broken_files(folder: Path) -> dict[Path, str]:
    """One of each way in which a file can fail -> a word of its reason."""
    whole = io.BytesIO()
    picture(640, 480).filter(ImageFilter.GaussianBlur(1)).save(whole, "JPEG")
    contents = {
        "truncated.jpg": (whole.getvalue()[: len(whole.getvalue()) // 2], "truncated"),
        "text.png": (b"this is no picture", "not a picture"),
        "empty.jpg": (b"", "empty"),
        "noise.gif": (b"GIF89a" + bytes(range(256)), ""),
        "bomb.png": (_png_header(60000, 60000), "too many pixels"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    picture(5000, 1).save(folder / "thread.png")
    (folder / "missing.jpg").symlink_to(folder / "nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    reasons = {folder / name: reason for name, (_, reason) in contents.items()}
    return reasons | {folder / "missing.jpg": "no such file", folder / "pipe.jpg": "not a regular file"}


def _png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b""))


def test_broken_files_give_a_reason(tmp_path):
    """Pillow raises OSError, SyntaxError, struct.error and more; a pipe would be waited for until the end of days."""
    for path, reason in broken_files(tmp_path).items():
        with pytest.raises(UnreadableImage) as caught:
            open_image(path)
        assert reason in caught.value.reason and "\n" not in caught.value.reason and caught.value.reason
    with pytest.raises(UnreadableImage, match="folder"):
        open_image(tmp_path)
    with pytest.raises(UnreadableImage, match="no pixels"):
        open_image(Image.new("RGB", (0, 3)))


def test_a_long_thin_picture_does_not_eat_the_memory():
    """Resizing the short side of 1 x 60000 pixels to 224 would take 9 GB."""
    with pytest.raises(UnreadableImage, match="long and thin"):
        load_pixels(Image.new("RGB", (60000, 1)), Preprocessing())


def test_heic_is_read_or_names_the_package(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(picture()).save(tmp_path / "a.heic")
    code = "import sys; sys.modules['pillow_heif'] = None\nfrom clipcap.clip.images import *\n"
    code += "try: open_image(sys.argv[1])\nexcept UnreadableImage as error: print(error.reason)"
    command = [sys.executable, "-c", code, str(tmp_path / "a.heic")]
    assert "pip install pillow-heif" in subprocess.run(command, capture_output=True, text=True).stdout
    assert open_image(tmp_path / "a.heic").size == (64, 48)


def test_a_heic_is_decoded_itself(tmp_path, monkeypatch):
    """Guards against the thumbnail in it, which pillow-heif gives for a draft, and which may show something else."""
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(picture(640, 480)).save(tmp_path / "a.heic")
    with open_file(tmp_path / "a.heic") as image:
        monkeypatch.setattr(type(image), "draft", lambda *_: pytest.fail("a thumbnail was asked for"))
    assert open_image(tmp_path / "a.heic", min_side=224).size == (640, 480)


def test_a_turned_picture_keeps_its_date(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2025:12:31 23:59:59"
    picture().save(tmp_path / "a.jpg", exif=exif)
    assert date_taken(open_image(tmp_path / "a.jpg")) == date_taken(tmp_path / "a.jpg") == "2025-12-31"


def test_jpegs_are_never_decoded_at_more_than_twice_the_size_needed(tmp_path):
    for width, height in [(3000, 2000), (450, 448), (447, 600), (640, 480), (230, 1000), (100, 80)]:
        picture(width, height).save(tmp_path / "a.jpg")
        opened = open_image(tmp_path / "a.jpg", min_side=224)
        assert min(opened.size) < 2 * 224 and min(opened.size) >= min(224, width, height)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_a_reduced_jpeg_shows_the_same_part_of_the_picture(tmp_path, orientation, mode):
    """Half of 645 pixels come in 323: taken for the whole picture, everything moves by half a pixel."""
    x, y = np.meshgrid(np.sin(np.linspace(0, 25, 861)), np.sin(np.linspace(0, 19, 645)))
    waves = Image.fromarray((127 + 60 * np.stack([x, y, x * y], axis=-1)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    waves.save(tmp_path / "a.jpg", exif=exif, quality=95)
    preprocessing = Preprocessing(size=(96, 96), resize_mode=mode)
    fast = load_pixels(tmp_path / "a.jpg", preprocessing).astype(float)
    plain = preprocessing.pixels(open_image(tmp_path / "a.jpg")).astype(float)
    assert np.abs(fast - plain).mean() < 0.8 and np.abs(fast - plain).max() < 16


def test_reduced_jpegs_hardly_change_the_pixels(shared):
    preprocessing = Preprocessing()
    for path in find_images(shared / "photos"):
        fast = load_pixels(path, preprocessing).astype(float)
        plain = preprocessing.pixels(open_image(path)).astype(float)
        assert 10 * np.log10(255**2 / np.mean((fast - plain) ** 2 + 1e-9)) > 36  # decibels; JPEG itself costs as much


@pytest.mark.parametrize("workers", [0, 1])
def test_bytes_and_functions_are_pictures_too(tmp_path, workers):
    """Data sets hold files, not paths; and what is read or drawn late is read or drawn by the workers."""
    picture(900, 645).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    reads = [(tmp_path / "a.jpg").read_bytes, Path(tmp_path / "a.jpg").resolve, picture(900, 645).copy]
    sources = [tmp_path / "a.jpg", content, *reads, b"no picture", b""] * 2
    [batch] = pixel_batches(sources, Preprocessing(), 20, workers)
    first = batch[0][1]
    assert all(np.array_equal(pixels, first) for _, pixels in batch[:4])
    assert np.abs(batch[4][1].astype(int) - first).max() < 9
    assert all(isinstance(pixels, UnreadableImage) for _, pixels in batch[5:7])


def test_folders_are_walked_in_order_once(tmp_path):
    for name in [
        "b.JPG",
        "a.png",
        "sub/c.jpeg",
        "sub/deep/d.webp",
        "notes.txt",
        ".hidden.jpg",
        ".cache/e.jpg",
        "z.tif",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "again.png").symlink_to(tmp_path / "a.png")
    found = [str(path.relative_to(tmp_path)) for path in find_images([tmp_path, tmp_path / "sub", tmp_path / "b.JPG"])]
    assert found == ["a.png", "b.JPG", "sub/c.jpeg", "sub/deep/d.webp", "z.tif"]
    assert list(find_images(tmp_path / "notes.txt")) == [tmp_path / "notes.txt"]  # named: the user knows best
    with pytest.raises(UserError, match="nowhere"):
        find_images([tmp_path, "nowhere"])


def test_a_junction_is_a_link(tmp_path, monkeypatch):
    """Windows has both. A folder that one leads back to was walked again and again, as far as paths may be long."""
    (tmp_path / "a.png").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    scandir = os.scandir

    class Entry:
        def __init__(self, entry):
            self.entry, self.name, self.path, self.is_dir = entry, entry.name, entry.path, entry.is_dir

        def is_symlink(self):
            return False

        def is_junction(self):
            return self.entry.is_symlink()

    @contextmanager
    def listing(path):
        with scandir(path) as entries:
            yield [Entry(entry) for entry in entries]

    monkeypatch.setattr(os, "scandir", listing)
    assert list(find_images(tmp_path)) == [tmp_path / "a.png"]


def test_a_folder_that_cannot_be_opened_is_reported(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert list(find_images(tmp_path)) == [tmp_path / "locked"]
    with pytest.raises(UnreadableImage, match="permission denied"):
        open_image(tmp_path / "locked")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_the_order_and_the_run_goes_on(tmp_path, workers):
    bad = broken_files(tmp_path)
    for index in range(40):
        Image.new("RGB", (40, 40), (index, 0, 0)).save(tmp_path / f"{index:02}.png")
    paths = list(find_images(tmp_path))
    batches = list(pixel_batches(iter(paths), Preprocessing(size=(32, 32)), 16, workers, first_batch=4))
    assert [len(batch) for batch in batches[:2]] == [4, 16]
    assert [path for batch in batches for path, _ in batch] == paths
    for path, decoded in (pair for batch in batches for pair in batch):
        if path in bad:
            assert isinstance(decoded, UnreadableImage) and bad[path] in decoded.reason
        elif path.stem.isdigit():
            assert decoded.dtype == np.uint8 and decoded.shape == (32, 32, 3) and decoded[0, 0, 0] == int(path.stem)


def test_sources_are_read_as_they_are_needed():
    """A folder of a million files must not be listed, nor decoded, ahead of the captions."""
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield Image.new("RGB", (32, 32))

    for workers in (0, 1):
        read = 0
        batches = pixel_batches(endless(), Preprocessing(size=(32, 32)), 32, workers)
        for _ in range(3):
            next(batches)
        batches.close()
        assert read <= 3 * 32 + 64


class Killer:
    """A picture whose decoder takes its process down: unpickling it ends the worker."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_worker_that_dies_loses_one_picture_and_not_the_run():
    """A picture that crashes its decoder, or a worker that the system kills, broke the whole pool."""
    sources = [Image.new("RGB", (32, 32), (index, 0, 0)) for index in range(60)]
    sources[5] = sources[40] = Killer()
    batches = pixel_batches(sources, Preprocessing(size=(32, 32)), 20, workers=2)
    decoded = [pixels for batch in batches for _, pixels in batch]
    assert [index for index, pixels in enumerate(decoded) if isinstance(pixels, UnreadableImage)] == [5, 40]
    assert "crashed" in decoded[5].reason
    assert [pixels[0, 0, 0] for pixels in decoded if not isinstance(pixels, UnreadableImage)] == [
        index for index in range(60) if index not in (5, 40)
    ]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system cannot block signals")
def test_ctrl_c_is_kept_from_workers_from_their_first_moment():
    """Each worker that was still starting showed a traceback."""
    with _start(1) as pool:
        assert signal.SIGINT in _submit(pool, signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_picture_that_cannot_be_sent_to_a_worker_is_decoded_here(tmp_path):
    """A PIL picture is loaded as it is sent: one whose file has been cut ended the run of all."""
    picture(400, 400).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:2000])
    sources = [Image.open(tmp_path / name) for name in ["a.jpg"] * 9 + ["b.jpg"] + ["a.jpg"] * 9]
    [batch] = pixel_batches(sources, Preprocessing(size=(32, 32)), 32, workers=1)
    assert [n for n, (_, pixels) in enumerate(batch) if isinstance(pixels, UnreadableImage)] == [9]


@pytest.mark.parametrize("failing", ["ProcessPoolExecutor", "_submit"])
def test_a_system_that_starts_no_process_decodes_here(monkeypatch, capsys, failing):
    """Some containers have no semaphores, others allow few processes: the run ended."""

    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(f"clipcap.clip.workers.{failing}", refuse)
    [batch] = pixel_batches([picture()] * 20, Preprocessing(size=(32, 32)), 20, workers=2)
    assert len(batch) == 20 and not any(isinstance(pixels, UnreadableImage) for _, pixels in batch)
    assert capsys.readouterr().err.count("cannot start here") == 1


def test_workers_do_not_import_torch():
    """Start-up counts, and threads that torch starts in each worker slow the whole machine."""
    code = "import sys, clipcap.clip.workers; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unguarded_script_still_gets_its_pictures(tmp_path):
    """Spawned workers run the main script again; without the usual guard they cannot start at all."""
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\nfrom PIL import Image\nfrom clipcap.clip.preprocessing import Preprocessing\n"
        "from clipcap.clip.workers import *\n"
        "sources = [Image.new('RGB', (32, 32))] * 20\n"
        "batches = list(pixel_batches(sources, Preprocessing(size=(32, 32)), 20, 1))\n"
        "print(len(batches[0]), all(isinstance(pixels, np.ndarray) for _, pixels in batches[0]))"
    )
    environment = os.environ | {"PYTHONPATH": "."}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=100)
    assert run.stdout.strip().endswith("20 True")


def test_a_script_on_stdin_tries_worker_processes_once():
    """They cannot start without a file to run again; each chunk used to try anew, with a traceback per worker."""
    code = (
        "import numpy as np\nfrom PIL import Image\nfrom clipcap.clip.preprocessing import Preprocessing\n"
        "from clipcap.clip.workers import *\n"
        "sources = [Image.new('RGB', (32, 32), (index, 0, 0)) for index in range(100)]\n"
        "batches = pixel_batches(sources, Preprocessing(size=(32, 32)), 20, workers=2)\n"
        "print(*(pixels[0, 0, 0] for batch in batches for _, pixels in batch))"
    )
    run = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True)
    assert run.stdout.split() == [str(index) for index in range(100)]
    assert run.stderr.count("Traceback") <= 3
    assert "decoded in this process" in run.stderr
