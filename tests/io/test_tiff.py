from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from rskd.errors import FileError
from rskd.io import read_labels, read_scan, write_image, write_labels
from rskd.scan import Scan


def ramp(*shape: int, dtype: str = "u1") -> np.ndarray:
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_reads_what_pillow_wrote(tmp_path: Path, compression: str | None) -> None:
    Image.fromarray(ramp(4, 6, 3)).save(tmp_path / "a.tif", compression=compression)
    scan = read_scan(tmp_path / "a.tif")
    assert (scan.axes, scan.channels, scan.spacing) == ("yxc", ("red", "green", "blue"), None)
    np.testing.assert_array_equal(scan.data, ramp(4, 6, 3))


def test_pages_are_a_stack(tmp_path: Path) -> None:
    pages = [Image.fromarray(page) for page in ramp(5, 4, 6)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    scan = read_scan(tmp_path / "a.tif")
    assert scan.axes == "zyx"
    np.testing.assert_array_equal(scan.data, ramp(5, 4, 6))


@pytest.mark.parametrize(("dpi", "tag", "spacing"), [(4.0, 3, (0.25, 0.25)), (72.0, 2, None)])
def test_centimetres_measure_and_inches_print(
    tmp_path: Path, dpi: float, tag: int, spacing: tuple[float, float] | None
) -> None:
    Image.fromarray(ramp(4, 6)).save(tmp_path / "a.tif", tiffinfo={282: dpi, 283: dpi, 296: tag})
    scan = read_scan(tmp_path / "a.tif")
    assert scan.spacing == spacing
    assert scan.units == ("cm" if spacing else None)


def test_white_is_zero(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp(4, 6), photometric="miniswhite")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.tif").data, 255 - ramp(4, 6))


@pytest.mark.parametrize("mode", ["1", "I;16", "F"])
def test_depths(tmp_path: Path, mode: str) -> None:
    expected = {"1": ramp(4, 6) % 2 * 255, "I;16": ramp(4, 6, dtype="u2") * 256, "F": ramp(4, 6, dtype="f4") / 7}[mode]
    image = Image.fromarray(expected).convert("1") if mode == "1" else Image.fromarray(expected)
    assert image.mode == mode
    image.save(tmp_path / "a.tif")
    scan = read_scan(tmp_path / "a.tif")
    np.testing.assert_array_equal(scan.data, expected)


def test_a_palette_is_seen_as_colours_and_read_as_indices(tmp_path: Path) -> None:
    image = Image.fromarray(ramp(4, 6) % 3, mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif").data, ramp(4, 6) % 3)
    seen = read_scan(tmp_path / "a.tif")
    assert seen.axes == "yxc"
    np.testing.assert_array_equal(seen.data, np.asarray(image.convert("RGB")))


def test_imagej_hyperstack(tmp_path: Path) -> None:
    data = ramp(2, 3, 4, 5, 6, dtype="u2")
    tifffile.imwrite(
        tmp_path / "a.tif",
        data,
        imagej=True,
        resolution=(4.0, 2.0),
        metadata={"axes": "TZCYX", "spacing": 3.0, "unit": "micron"},
    )
    scan = read_scan(tmp_path / "a.tif")
    assert (scan.axes, scan.spacing, scan.units) == ("tzcyx", (3.0, 0.5, 0.25), "um")
    np.testing.assert_array_equal(scan.data, data)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_ome(tmp_path: Path, byte_order: str, big: bool) -> None:
    data = ramp(3, 2, 5, 6, dtype="u2")
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 1 / 3, "PhysicalSizeZ": 2.0}
    units = {f"{name}Unit": "nm" for name in sizes}
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        data,
        byteorder=byte_order,
        bigtiff=big,
        metadata={"axes": "ZCYX", **sizes, **units, "Channel": {"Name": ["DAPI", "actin"]}},
    )
    scan = read_scan(tmp_path / "a.ome.tif")
    assert (scan.axes, scan.units, scan.channels) == ("zcyx", "nm", ("DAPI", "actin"))
    assert scan.spacing == (2.0, 1 / 3, 0.25)
    assert scan.data.dtype.isnative
    np.testing.assert_array_equal(scan.data, data)


def test_only_the_full_resolution_of_a_tiled_pyramid_is_read(tmp_path: Path) -> None:
    data = ramp(64, 96)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(data, tile=(16, 16), subifds=1)
        file.write(data[::2, ::2], tile=(16, 16), subfiletype=1)
    np.testing.assert_array_equal(read_scan(tmp_path / "a.tif").data, data)


@pytest.mark.parametrize(
    ("axes", "shape", "dtype"),
    [
        ("yx", (4, 6), "u1"),
        ("yxc", (4, 6, 3), "u1"),
        ("zyxc", (2, 4, 6, 3), "u1"),
        ("zyx", (3, 4, 6), "f4"),
        ("tzcyx", (2, 3, 5, 4, 6), "u2"),
        ("cyx", (2, 4, 6), "i4"),
        ("yxc", (4, 6, 5), "f4"),
    ],
)
def test_written_scans_come_back(tmp_path: Path, axes: str, shape: tuple[int, ...], dtype: str) -> None:
    spacing = (2.0, 1 / 3, 0.1)[-sum(axis in "zyx" for axis in axes) :]
    scan = Scan(ramp(*shape, dtype=dtype), axes, spacing=spacing, units="um")
    write_image(tmp_path / "a.tif", scan)
    again = read_scan(tmp_path / "a.tif")
    order = [axes.index(axis) for axis in again.axes]
    np.testing.assert_array_equal(again.data, scan.data.transpose(order))
    assert (again.data.dtype, again.spacing, again.units) == (scan.data.dtype, spacing, "um")


def test_pillow_reads_the_labels_we_write(tmp_path: Path) -> None:
    scan = Scan(ramp(4, 6, 3), "yxc")
    write_labels(tmp_path / "a.tif", np.arange(24).reshape(4, 6) * 100, scan)
    with Image.open(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(np.asarray(image), np.arange(24).reshape(4, 6) * 100)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_cut_off_file_is_refused(tmp_path: Path, compression: str | None) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", noise, compression=compression)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(content[:-100])
    with pytest.raises(FileError, match="cut off"):
        read_scan(tmp_path / "b.tif")


def test_channels_of_colours_are_too_many(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp(2, 4, 6, 3), ome=True, photometric="rgb", metadata={"axes": "CYXS"})
    with pytest.raises(FileError, match="too many"):
        read_scan(tmp_path / "a.tif")


def test_what_a_header_says_does_not_enter_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp(4, 6), software="Jane Doe €".encode(), metadata=None)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content.replace("€".encode(), b"\x81\x90\x9d"))  # in no usual encoding
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].tags["Software"].value
    assert "Jane Doe" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(read_scan(tmp_path / "a.tif").data, ramp(4, 6))
    assert not caplog.text


def slide(path: Path, *, big: bool = False) -> np.ndarray:
    """A slide as Aperio describes it, with a name in its description."""
    pixels = np.random.default_rng(0).integers(0, 255, (256, 320, 3), dtype=np.uint8)
    about = "Aperio Image Library v11.2.1 \r\n320x256 |AppMag = 40|MPP = 0.2527|User = Zyxwerth"
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=big) as file:
        file.write(pixels, description=about, **options)
        file.write(pixels[::8, ::8], photometric="rgb", metadata=None, description="Aperio thumbnail")
        file.write(pixels[::2, ::2], description="Aperio Image Library level 2", **options)
    return pixels


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("big", [False, True])
def test_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lazy: bool, big: bool) -> None:
    pixels = slide(tmp_path / "a.svs", big=big)
    if lazy:
        monkeypatch.setattr("rskd.io.tiff.LAZY_FROM", 0)
    scan = read_scan(tmp_path / "a.svs")
    assert (scan.axes, scan.spacing, scan.units, scan.modality) == ("yxc", (0.2527, 0.2527), "um", "SM")
    assert scan.channels == ("red", "green", "blue")
    assert [level.shape for level in scan.pyramid] == ([(128, 160, 3)] if lazy else [])
    assert isinstance(scan.data, np.ndarray) != lazy
    np.testing.assert_array_equal(scan.data[100:110, 20:30], pixels[100:110, 20:30])
    np.testing.assert_array_equal(scan.data, pixels)
    write_labels(tmp_path / "labels.tif", np.ones((256, 320), int), scan)
    assert b"Zyxwerth" not in (tmp_path / "labels.tif").read_bytes()


def test_a_lazy_tile_that_is_cut_off_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide(tmp_path / "a.svs")
    with tifffile.TiffFile(tmp_path / "a.svs") as file:
        place, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content = bytearray((tmp_path / "a.svs").read_bytes())
    content[place : place + size] = bytes(size)
    (tmp_path / "a.svs").write_bytes(content)
    monkeypatch.setattr("rskd.io.tiff.LAZY_FROM", 0)
    scan = read_scan(tmp_path / "a.svs")
    with pytest.raises(FileError, match=r"a\.svs cannot be read to its end"):
        scan.data[:10, :10]
