"""PNG, JPEG, BMP and GIF: everyday pictures. They state no physical size, so the spacing stays unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.errors import FileError, ParameterError
from rskd.scan import Scan, move_axes

_FORMATS = ("PNG", "JPEG", "BMP", "GIF")
_CHANNELS = {2: ("grey", "alpha"), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
_MODES = {"CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA"}


def read(path: Path) -> Scan:
    """Read a picture as it is seen: palettes as colours, turned as its camera says, 1 bit as 0 and 255."""
    return _read(path, _seen)


def read_indices(path: Path) -> Scan:
    """Read a mask: a palette gives the index of every pixel, unless it is a scale of greys."""
    return _read(path, _indices)


def write(path: Path, scan: Scan) -> None:
    """Write a PNG of 8 or 16 bits, grey or colour."""
    import imagecodecs

    if path.suffix.lower() != ".png":
        raise ParameterError(f"{path.name}: pictures are written as PNG, which loses nothing; end the name in .png.")
    data = np.asarray(scan.data)
    if scan.axes not in ("yx", "yxc", "cyx") or data.dtype not in (bool, np.uint8, np.uint16):
        raise ParameterError(
            f"{path.name}: a PNG holds one picture of 8 or 16 bits, this is {scan.axes!r} of {data.dtype}; "
            "write a TIFF instead (.tif)."
        )
    if scan.channel_count > 4:
        raise ParameterError(f"{path.name}: a PNG has at most 4 channels, this has {scan.channel_count}; write a TIFF.")
    pixels = move_axes(data, scan.axes, "yxc" if "c" in scan.axes else "yx")
    pixels = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))


def _read(path: Path, convert: Any) -> Scan:
    from PIL import Image, ImageSequence

    if _is_deep_colour_png(path):
        return _scan([_decode_deep(path)])
    try:
        with Image.open(path, formats=_FORMATS) as image:
            moving = getattr(image, "n_frames", 1) > 1 and image.format in ("GIF", "PNG")
            frames = [convert(frame) for frame in (ImageSequence.Iterator(image) if moving else [image])]
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise FileError(f"{path.name} is larger than {limit} megapixels: save it as a TIFF.") from error
    return _scan(frames)


def _scan(frames: list[NDArray[Any]]) -> Scan:
    depth = {frame.ndim for frame in frames}
    if len(depth) > 1:  # an animation may go from grey to colour
        frames = [frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2) for frame in frames]
    data = np.stack(frames) if len(frames) > 1 else frames[0]
    axes = ("t" if len(frames) > 1 else "") + ("yxc" if frames[0].ndim == 3 else "yx")
    return Scan(data, axes, channels=_CHANNELS[data.shape[-1]] if "c" in axes else ())


def _seen(image: Any) -> NDArray[Any]:
    """Return pixels as a viewer shows them, (H, W) or (H, W, C)."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "PA"):
        colours = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
        pixels = np.asarray(colours)
        return pixels[..., 0] if _is_grey(pixels) else pixels
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8) * 255
    return np.array(image.convert(_MODES[image.mode]) if image.mode in _MODES else image)


def _indices(image: Any) -> NDArray[Any]:
    """Return the pixels of a mask; of a palette its indices, because its colours are only for show."""
    if image.mode == "P" and not _is_grey(np.asarray(image.convert("RGB"))):
        return np.array(image)
    return _seen(image)


def _is_grey(pixels: NDArray[Any]) -> bool:
    opaque = pixels.shape[-1] == 3 or bool((pixels[..., 3] == 255).all())
    return opaque and bool((pixels[..., :1] == pixels[..., 1:3]).all())


def _is_deep_colour_png(path: Path) -> bool:
    """Whether this is a PNG of 16 bits per colour, which Pillow would cut to 8."""
    with open(path, "rb") as file:
        head = file.read(26)
    return head.startswith(b"\x89PNG") and head[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06")


def _decode_deep(path: Path) -> NDArray[Any]:
    import imagecodecs

    return np.asarray(imagecodecs.png_decode(path.read_bytes()))
