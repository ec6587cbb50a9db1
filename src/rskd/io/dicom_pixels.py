"""The pixels of DICOM files as the values that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rskd.io.libraries import library

_JPEG = ("JPEGExtended12Bit", "JPEGLossless", "JPEGLosslessSV1")
_PLUGIN = "imagecodecs"
_RESCALE_TYPES = {"HU": "HU", "OD": "OD", "Z_EFF": "Z_EFF", "ED": "ED", "EDW": "EDW", "PCT": "%", "HU_MOD": "HU_MOD"}
_UNITS = {"BQML": "Bq/ml", "CNTS": "counts", "GML": "g/ml", "CM2ML": "cm²/ml", "PROPCPS": "counts/s"}
STORED = "stored values"

# pydicom asks a decoder's module for `is_available` and for `DECODER_DEPENDENCIES`.
DECODER_DEPENDENCIES: dict[str, tuple[str, ...]] = {}


class Rescale(NamedTuple):
    """Linear map from stored to real values."""

    slope: float
    intercept: float


def decode(dataset: Any) -> NDArray[Any]:
    """Return all frames, (N,) H W [C], with luminance and chrominance as red, green and blue.

    Parameters
    ----------
    dataset
        pydicom dataset with its pixels.
    """
    use_imagecodecs()
    pixels: NDArray[Any] = library("pydicom.pixels").pixel_array(dataset)
    colours = int(dataset.SamplesPerPixel) if "SamplesPerPixel" in dataset else 1
    if str(dataset.get("PhotometricInterpretation")) == "PALETTE COLOR":
        pixels, colours = library("pydicom.pixels").apply_color_lut(pixels, dataset), 3
        pixels = pixels[..., :3]
    elif str(dataset.get("PhotometricInterpretation")) == "MONOCHROME1":
        pixels = _turn_round(pixels, dataset)
    return pixels if pixels.ndim == 3 + (colours > 1) else pixels[np.newaxis]


def rescale_of(dataset: Any, group: Callable[[str], Any]) -> Rescale:
    """Return the map of one plane; `group` finds its functional group of a name."""
    if "DoseGridScaling" in dataset:
        return Rescale(float(dataset.DoseGridScaling), 0.0)
    source = group("PixelValueTransformationSequence") or dataset
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    return Rescale(1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))


def apply(stored: NDArray[Any], maps: Sequence[Rescale]) -> NDArray[Any]:
    """Return (N, H, W[, C]) values; integers stay integers where the maps are whole numbers.

    Examples
    --------
    >>> apply(np.array([[[0, 4095]]], np.uint16), [Rescale(1, -1024)])
    array([[[-1024,  3071]]], dtype=int16)
    """
    if all(each == (1, 0) for each in maps):
        return stored
    slopes, intercepts = np.array(maps).T
    shape = (-1,) + (1,) * (stored.ndim - 1)
    whole = stored.dtype.kind in "iu" and (slopes % 1 == 0).all() and (intercepts % 1 == 0).all()
    exact = np.float64 if stored.dtype.itemsize > 2 else np.float32
    kind = np.int64 if whole else exact
    values: NDArray[Any] = stored.astype(kind)
    values *= slopes.astype(kind).reshape(shape)
    values += intercepts.astype(kind).reshape(shape)
    if not whole:
        return values
    lowest, highest = values.min(initial=0), values.max(initial=0)
    fits = (kind for kind in (np.int16, np.int32) if np.iinfo(kind).min <= lowest and highest <= np.iinfo(kind).max)
    return values.astype(next(fits, np.int64))


def lookup_table(pixels: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Apply the table that some digitised films bring instead of a slope."""
    if "ModalityLUTSequence" not in dataset:
        return pixels
    return np.asarray(library("pydicom.pixels").apply_modality_lut(pixels, dataset))


def meaning_of(dataset: Any, source: Any, modality: str | None, *, rescaled: bool) -> str:
    """Say what the values are, in words that are on a list: the header's own may say who the patient is."""
    if "DoseGridScaling" in dataset:
        return "Gy" if dataset.get("DoseUnits") == "GY" else "relative dose"
    if str(dataset.get("Units")) in _UNITS:
        return _UNITS[str(dataset.Units)]
    rescale = source or dataset
    stated = str(rescale.get("RescaleType") or "").strip().upper()
    if not stated and modality == "CT" and "RescaleSlope" in rescale:
        return "HU"
    return _RESCALE_TYPES.get(stated) or ("rescaled values" if rescaled else STORED)


def _turn_round(pixels: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Exchange dark and bright: MONOCHROME1 stores white as the lowest value."""
    if pixels.dtype.kind not in "iu":
        return pixels
    bits = int(dataset.BitsStored)
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)
    turned: NDArray[Any] = (lowest + highest - pixels.astype(np.int64)).astype(pixels.dtype)
    return turned


def use_imagecodecs() -> None:
    """Let pydicom decode JPEG that is lossless or has 12 bits: its own choices are GPL, or hard to install."""
    decoders = library("pydicom.pixels.decoders")
    for name in _JPEG:
        decoder = getattr(decoders, f"{name}Decoder")
        if _PLUGIN not in (*decoder._available, *decoder._unavailable):
            decoder.add_plugin(_PLUGIN, (__name__, "decode_frame"))


def is_available(uid: str) -> bool:
    """Tell pydicom whether `decode_frame` can be used for a transfer syntax."""
    return True


def decode_frame(source: bytes, runner: Any) -> bytearray:
    """Decode one frame of JPEG, as pydicom's plugins do."""
    codecs = library("imagecodecs")
    lossless = runner.transfer_syntax.name.startswith("JPEG Lossless")
    pixels = codecs.ljpeg_decode(source) if lossless else codecs.jpeg8_decode(source)
    if pixels.shape[:2] != (runner.rows, runner.columns):
        raise ValueError("The frame has another size than the header says.")
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
    return bytearray(np.ascontiguousarray(pixels).tobytes())
