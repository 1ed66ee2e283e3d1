"""JPEGs that the device decodes are the pictures that Pillow shows, and what it cannot decode is Pillow's again.

Here the device is the CPU, with the code that a GPU would run; with "cuda" tensors have shapes only.
"""

import io
import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from test_images import broken_files
from tiny import needs_pretended_gpu, save_tiny_clip, save_tiny_weights
from torch._subclasses.fake_tensor import FakeTensorMode

import load_data
import predict
from clipcap import Captioner, ClipEncoder
from clipcap.clip import formats, jpegs
from clipcap.clip.images import UnreadableImage, load_or_leave, load_pixels
from clipcap.clip.preprocessing import Jpeg, Preprocessing
from clipcap.clip.workers import pixel_batches
from clipcap.data.embed import WithThumbnail
from clipcap.data.store import EmbeddingStore
from clipcap.errors import UserError
from clipcap.world.scenes import scenes

EXACT = Preprocessing(size=(64, 64), reduced=False)
DEVICE = replace(EXACT, jpeg_device="cpu")


def waves(width=200, height=150):
    """A smooth picture without any symmetry."""
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    colours = [np.sin(x) * np.cos(y / 2), np.sin(x + y), np.cos(x * y / 9 + 1)]
    return Image.fromarray((127 + 110 * np.stack(colours, axis=-1)).astype(np.uint8))


def saved(picture, kind="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(waves(), exif=exif)


PLAIN = saved(waves(), quality=90)
FRAME = PLAIN.index(b"\xff\xc0")  # where the header says how large the picture is
OTHER_SIZE = PLAIN[FRAME : FRAME + 5] + struct.pack(">HH", 9000, 9000) + PLAIN[FRAME + 9 : FRAME + 19]
LEFT = {
    "baseline": PLAIN,
    "progressive": saved(waves(), progressive=True),
    "optimised": saved(waves(), optimize=True, subsampling=0),
    "grey": saved(waves().convert("L")),
    "small": saved(waves(20, 31)),
    "long": saved(waves(900, 21)),
    "odd": saved(waves(333, 211)),
    **{f"orientation {number}": turned(number) for number in range(10)},
}
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8))
KEPT = {
    "CMYK": saved(waves().convert("CMYK")),
    "RGB": saved(waves(), keep_rgb=True),
    "several pictures": saved(waves(), "MPO", save_all=True, append_images=[waves(80, 60)]),
    "something behind the end": PLAIN + b"\0" * 100,
    "a size that is told twice": PLAIN[:FRAME] + OTHER_SIZE + PLAIN[FRAME:],
    "large file": saved(NOISE, quality=100, subsampling=0),
    **{kind: saved(waves(), kind) for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF")},
}


def difference(pixels, wanted):
    return np.abs(pixels.astype(int) - wanted)


def decoded(source, preprocessing=DEVICE):
    [[(_, pixels)]] = pixel_batches([source], preprocessing, 1)
    return pixels


@pytest.mark.parametrize("name", LEFT)
def test_the_device_shows_what_pillow_shows(name):
    """Guards against a turned or mirrored photo, another part of it, and grey ones with one channel."""
    assert isinstance(load_or_leave(LEFT[name], DEVICE), Jpeg)
    pixels, wanted = decoded(LEFT[name]), load_pixels(LEFT[name], EXACT)
    assert pixels.shape == wanted.shape and pixels.dtype == np.uint8
    assert difference(pixels, wanted).max() <= 2  # Pillow rounds between the two directions, torch does not


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_every_way_to_fit_a_picture_is_pillows(mode, size):
    """Guards against a padding or a crop that is a pixel off its centre, and another filter."""
    for interpolation in ("bicubic", "bilinear"):
        exact = replace(EXACT, size=size, resize_mode=mode, interpolation=interpolation, fill_color=200)
        for width, height in ((201, 150), (31, 150), (97, 64), (20, 20)):
            file = saved(waves(width, height))
            pixels = decoded(file, replace(exact, jpeg_device="cpu"))
            assert difference(pixels, load_pixels(file, exact)).max() <= 2, (width, height)


@pytest.mark.parametrize("name", KEPT)
def test_what_other_decoders_may_see_otherwise_is_left_to_pillow(name, monkeypatch):
    """Guards against wrong colours, the wrong one of two pictures, and files by the hundred that fill the memory."""
    assert not isinstance(outcome(KEPT[name], DEVICE), Jpeg)
    monkeypatch.setattr(formats, "MOST_PIXELS", 1000)
    assert not isinstance(load_or_leave(PLAIN, DEVICE), Jpeg)


def outcome(source, preprocessing):
    try:
        return load_or_leave(source, preprocessing)
    except UnreadableImage as error:
        return error.reason


@pytest.mark.parametrize("workers", [0, 1])
def test_order_and_reasons_are_those_of_pillow(tmp_path, workers):
    """Guards against pixels under the name of another picture, and against a broken file that ends the run."""
    cut = [PLAIN[:length] for length in (2, 300, 700, len(PLAIN) // 2, len(PLAIN) - 2)]
    damaged = PLAIN[:800] + bytes(60) + PLAIN[860:]
    bomb = PLAIN[: FRAME + 5] + struct.pack(">HH", 65000, 65000) + PLAIN[FRAME + 9 :]
    thread = saved(Image.new("RGB", (60000, 1)))
    sources = [*cut, PLAIN, damaged, bomb, thread, *broken_files(tmp_path), *KEPT.values(), *LEFT.values(), b""]
    wide = replace(DEVICE, size=(224, 224))
    [batch] = pixel_batches(iter(sources), wide, 100, workers)
    [usual] = pixel_batches(iter(sources), replace(wide, jpeg_device=None), 100, workers)
    assert [source for source, _ in batch] == sources
    failed = [isinstance(pixels, UnreadableImage) for _, pixels in batch]
    assert failed == [isinstance(pixels, UnreadableImage) for _, pixels in usual] and 12 < sum(failed) < 30
    for (_, pixels), (_, wanted) in zip(batch, usual, strict=True):
        if isinstance(pixels, UnreadableImage):
            assert pixels.reason == wanted.reason and pixels.__traceback__ is None
        else:
            assert difference(pixels, wanted).max() <= 3
    assert batch[7][1].reason == "too many pixels (more than 178 million)"


def test_pillow_decodes_where_the_device_fails(monkeypatch):
    """Guards against a batch that is lost with one picture, and against a decoder that reads another header."""
    decode, asked = torchvision.io.decode_jpeg, []

    def fails(contents, mode, device):
        asked.append(len(contents))
        if any(content.tolist() == list(LEFT["grey"]) for content in contents):
            raise RuntimeError("nvjpeg failed")
        odd = list(LEFT["odd"])
        return [
            image[:, :-1] if content.tolist() == odd else image
            for image, content in zip(decode(contents, mode, device=device), contents, strict=True)
        ]

    monkeypatch.setattr(torchvision.io, "decode_jpeg", fails)
    names = ["baseline", "grey", "small", "odd"]
    [batch] = pixel_batches([LEFT[name] for name in names], DEVICE, 4)
    assert asked == [4, 1, 1, 1, 1]
    for name, (_, pixels) in zip(names, batch, strict=True):
        wanted = load_pixels(LEFT[name], EXACT)
        assert np.array_equal(pixels, wanted) if name in ("grey", "odd") else difference(pixels, wanted).max() <= 2


def test_a_batch_is_decoded_in_parts(monkeypatch):
    """Guards against a batch of 256 large photos in the memory of the device together."""
    decode, asked = torchvision.io.decode_jpeg, []
    monkeypatch.setattr(
        torchvision.io, "decode_jpeg", lambda given, *_, device: asked.append(len(given)) or decode(given, *_, device)
    )
    assert len(next(pixel_batches([PLAIN] * 19, DEVICE, 32, 0))) == 19
    assert asked == [8, 8, 3]


@needs_pretended_gpu
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_device_is_not_left_between_decoding_and_clip(orientation):
    """Guards against a filter or an index that stays on the CPU."""
    with FakeTensorMode():
        image = torch.zeros(3, 150, 200, dtype=torch.uint8, device="cuda")
        for mode in ("shortest", "longest"):
            preprocessing = replace(DEVICE, resize_mode=mode, jpeg_device="cuda")
            pixels = jpegs.resized(image, Jpeg(b"", (200, 150), orientation, preprocessing))
            assert (pixels.shape, pixels.dtype, pixels.device.type) == ((64, 64, 3), torch.uint8, "cuda")


def test_embeddings_are_close_to_the_usual_ones():
    """Measured: at least 0.999996, on photos and on these; see docs/troubleshooting.md."""
    photos = [saved(scene.draw().resize((700, 900)), quality=90) for scene in scenes("test", 6)]
    usual, device = (ClipEncoder.load("demo", decode_on_device=on).encode_images(photos) for on in (False, True))
    assert torch.cosine_similarity(usual, device).min() > 0.9999 and not torch.equal(usual, device)
    with pytest.raises(UnreadableImage, match="truncated"):
        ClipEncoder.load("demo", decode_on_device=True).encode_images([*photos, photos[0][:900]])


def test_a_device_that_cannot_decode_is_refused_in_one_sentence(tmp_path, monkeypatch):
    """Guards against a run that Pillow does alone, and in one process, although a GPU was asked for."""
    weights = save_tiny_weights(tmp_path)
    encoder = ClipEncoder.load(save_tiny_clip(tmp_path / "clip"))
    with pytest.raises(UserError, match=r"device mps here \(torchvision has no decoder for it\): leave out"):
        jpegs.check_device("mps")
    with pytest.raises(UserError, match="too late for a CLIP that is loaded"):
        Captioner.load(weights, clip=encoder, decode_on_device=True)
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    (tmp_path / "a.jpg").write_bytes(PLAIN)
    with pytest.raises(UserError, match=r"JPEGs cannot be decoded on the device cpu here \(cannot import name"):
        predict.main(["--weights", str(weights), str(tmp_path / "a.jpg"), "--decode-on-device", "--device", "cpu"])


def test_predict_decodes_on_the_device(tmp_path, capsys, monkeypatch):
    """Guards against an option that is parsed and forgotten."""
    weights = save_tiny_weights(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, content in enumerate([PLAIN, PLAIN[:900], KEPT["PNG"], LEFT["grey"]]):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(content)
    command = ["--weights", str(weights), str(tmp_path / "photos"), "--device", "cpu", "--max-tokens", "9"]
    left = []
    monkeypatch.setattr(jpegs, "_decode", lambda given, real=jpegs._decode: left.append(len(given)) or real(given))
    assert predict.main(command) == 1 and not left
    usual = capsys.readouterr()
    assert predict.main([*command, "--decode-on-device"]) == 1 and left == [1, 2]
    device = capsys.readouterr()
    assert [line.split("\t")[0] for line in device.out.splitlines()] == [
        line.split("\t")[0] for line in usual.out.splitlines()
    ]
    assert "1.jpg: truncated file" in device.err and len(device.out.splitlines()) == 3


def test_a_dataset_is_decoded_in_one_way(tmp_path):
    """Guards against a dataset of which a part is decoded by the device, and a test split without thumbnails."""
    clip, photos = save_tiny_clip(tmp_path / "clip"), tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        (photos / f"{number}.jpg").write_bytes(saved(waves(200 + 5 * number)))
        (photos / f"{number}.txt").write_text(f"caption {number}")
    command = ["--source", "folder", str(photos), "--clip", str(clip), "--device", "cpu", "--workers", "0"]
    command += ["--test-fraction", "0.5", "--val-fraction", "0"]
    load_data.main([*command, "--output", str(tmp_path / "usual")])
    load_data.main([*command, "--output", str(tmp_path / "device"), "--decode-on-device"])
    usual, device = (EmbeddingStore.open(tmp_path / name) for name in ("usual", "device"))
    for split in ("train", "test"):
        wanted, found = (torch.tensor(store.embeddings(split)[:]) for store in (usual, device))
        assert torch.cosine_similarity(wanted, found).min() > 0.999 and not torch.equal(wanted, found)
    assert usual.column("test", "thumbnail") == device.column("test", "thumbnail")
    brought = SimpleNamespace(examples=[SimpleNamespace(clip_embedding=[0.0])])
    with pytest.raises(UserError, match="this source brings its embeddings; leave it out"):
        load_data.load_clip(brought, load_data.DatasetArguments(decode_on_device=True))
    with pytest.raises(UserError, match="made with another JPEG decoder"):
        load_data.main([*command, "--output", str(tmp_path / "usual"), "--decode-on-device"])
    [[(_, (pixels, thumbnail))]] = pixel_batches([PLAIN], WithThumbnail(DEVICE), 1)
    assert pixels.shape == (64, 64, 3) and Image.open(io.BytesIO(thumbnail)).size == (200, 150)
