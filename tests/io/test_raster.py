import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rskd.errors import FileError, ParameterError
from rskd.io import read_labels, read_scan, write_image, write_labels
from rskd.scan import Scan


def ramp(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(np.uint8)


def handmade_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG from its specification; every row of `rows` is preceded by its filter, 0."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colours_keep_every_bit(tmp_path: Path) -> None:
    pixels = np.array([[[1, 256, 65535], [257, 2, 40000]]], dtype=">u2")
    (tmp_path / "a.png").write_bytes(handmade_png(2, 1, 16, 2, b"\0" + pixels.tobytes()))
    scan = read_scan(tmp_path / "a.png")
    assert (scan.axes, scan.data.dtype) == ("yxc", np.uint16)
    np.testing.assert_array_equal(scan.data, pixels)


def test_one_bit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(handmade_png(10, 1, 1, 0, b"\0" + b"\xa0\x40"))
    np.testing.assert_array_equal(read_scan(tmp_path / "a.png").data, [[255, 0, 255, 0, 0, 0, 0, 0, 0, 255]])


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif"])
@pytest.mark.parametrize("mode", ["L", "1"])
def test_lossless_greys(tmp_path: Path, suffix: str, mode: str) -> None:
    pixels = ramp(4, 6) if mode == "L" else ramp(4, 6) % 2 * 255
    Image.fromarray(pixels).convert(mode).save(tmp_path / f"a{suffix}")
    for scan in (read_scan(tmp_path / f"a{suffix}"), read_labels(tmp_path / f"a{suffix}")):
        assert (scan.axes, scan.spacing, scan.affine) == ("yx", None, None)
        np.testing.assert_array_equal(scan.data, pixels)


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_and_transparency(tmp_path: Path, channels: int) -> None:
    Image.fromarray(ramp(4, 6, channels)).save(tmp_path / "a.png")
    scan = read_scan(tmp_path / "a.png")
    assert scan.channels == ("red", "green", "blue", "alpha")[:channels]
    np.testing.assert_array_equal(scan.data, ramp(4, 6, channels))


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp"])
def test_a_palette_is_seen_as_colours_and_read_as_indices(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(ramp(4, 6) % 3, mode="P")
    image.putpalette([10, 0, 0, 255, 0, 0, 0, 0, 255])
    image.save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_labels(tmp_path / f"a{suffix}").data, ramp(4, 6) % 3)
    seen = read_scan(tmp_path / f"a{suffix}")
    assert seen.axes == "yxc"
    np.testing.assert_array_equal(seen.data, np.asarray(image.convert("RGB")))


def test_a_palette_of_greys_is_read_as_greys(tmp_path: Path) -> None:
    image = Image.fromarray(ramp(4, 6) % 2, mode="P")
    image.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white: the picture counts, not the index
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png").data, 255 - ramp(4, 6) % 2 * 255)


def test_frames_are_times(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 6), level, np.uint8)) for level in (0, 90, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    scan = read_scan(tmp_path / "a.gif")
    assert scan.axes[:3] == "tyx"
    np.testing.assert_array_equal(np.unique(scan.data[2]), [200])


def test_a_camera_held_upright(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, :16] = 255  # the left half is bright: turned by 90° clockwise, the top half
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    scan = read_scan(tmp_path / "a.jpg")
    assert scan.data.shape == (32, 16)
    assert scan.data[:14].min() > 240
    assert scan.data[18:].max() < 15


def test_pictures_for_print_become_colours(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16, 3), 255, np.uint8)).convert("CMYK").save(tmp_path / "a.jpg")
    scan = read_scan(tmp_path / "a.jpg")
    assert scan.data.shape == (16, 16, 3)
    assert scan.data.min() > 250


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 4)])
def test_written_pictures_come_back(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    pixels = (ramp(*shape) % 2 if dtype is bool else ramp(*shape)).astype(dtype)
    write_image(tmp_path / "a.png", Scan(pixels, "yxc"[: len(shape)]))
    again = read_scan(tmp_path / "a.png")
    np.testing.assert_array_equal(again.data, pixels * (255 if dtype is bool else 1))


def test_pillow_reads_the_labels_we_write(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [2, 300]])
    write_labels(tmp_path / "a.png", labels, Scan(np.zeros((2, 2, 3), np.uint8), "yxc"))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), labels)


@pytest.mark.parametrize(
    ("name", "scan", "words"),
    [
        ("a.png", Scan(np.zeros((2, 4, 6), np.uint8), "zyx"), "one picture"),
        ("a.png", Scan(np.zeros((4, 6), np.float32), "yx"), "8 or 16 bits"),
        ("a.png", Scan(np.zeros((5, 4, 6), np.uint8), "cyx"), "at most 4 channels"),
        ("a.jpg", Scan(np.zeros((4, 6), np.uint8), "yx"), "end the name in"),
    ],
)
def test_what_a_picture_cannot_hold_is_refused(tmp_path: Path, name: str, scan: Scan, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        write_image(tmp_path / name, scan)
    assert not list(tmp_path.iterdir())


def test_a_picture_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(handmade_png(60000, 60000, 8, 0, b"\0"))
    with pytest.raises(FileError, match="larger than"):
        read_scan(tmp_path / "a.png")
