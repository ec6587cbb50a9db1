"""An image as contourlet sub-bands that can be laid over it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rskd.config import ContourletOptions, DenoiseOptions
from rskd.contourlet import (
    Layout,
    Subband,
    Subbands,
    contourlet,
    denoise,
    icontourlet,
    nonsubsampled_contourlet,
)
from rskd.errors import ParameterError
from rskd.events import Progress, Task
from rskd.io import write_image
from rskd.jobs import Outcome
from rskd.scan import Scan, move_axes

Plane = NDArray[np.float64]


def decompose(
    scan: Scan,
    options: ContourletOptions,
    *,
    channel: int | None = None,
    output: Path | None = None,
    subbands: Subbands[NDArray[Any]] | None = None,
) -> Task[Outcome]:
    """Split a 2-D image into contourlet sub-bands, and measure how exactly they give it back.

    Parameters
    ----------
    scan
        One image, with or without channels.
    options
        Levels and filters.
    channel
        Channel, from 0; None = the mean of all but transparency.
    output
        Folder for one TIFF per array; None = none.
    subbands
        What `split` gave for this image, if it is at hand.

    Yields
    ------
    Progress
        After the transform, and after its inverse.

    Returns
    -------
    Outcome
        Arrays ``lowpass``, ``level{j}_band{k}`` (j from 1, the finest) and ``reconstruction``, float32. `value` is
        ``{"bands": […], "reconstruction_error": largest absolute difference in intensity}``. A band has ``array``,
        ``name``, ``level``, ``direction``, ``edge_angle``, ``wedge``, ``scale`` and ``translate`` (pixels of the
        image per sample, and pixel on which its sample [0, 0] stands, along y and x), and ``energy``, the sum of its
        squares. Samples that stand outside of the image, in the extension of its border, are left out.

    Raises
    ------
    ParameterError
        If the image is not one plane, or too small for the levels.
    """
    plane = single_plane(scan, channel=channel)
    subbands = subbands or split(plane, options)
    yield Progress(1, 2, "transforms")
    back = icontourlet(subbands)
    yield Progress(2, 2, "transforms")
    bands, arrays = shown_bands(subbands)
    arrays["reconstruction"] = back.astype(np.float32)
    if output is not None:
        _write(output, scan, bands, arrays)
    return Outcome({"bands": bands, "reconstruction_error": float(np.abs(back - plane).max())}, arrays)


def split(plane: Plane, options: ContourletOptions) -> Subbands[NDArray[Any]]:
    """Return the contourlet transform of a picture (H, W)."""
    transform = nonsubsampled_contourlet if options.nonsubsampled else contourlet
    return transform(
        plane, options.levels, pyramid=options.pyramid, directional=options.directional, border=options.border
    )


def array_name(info: Subband) -> str:
    """Return the name of a sub-band's array: ``lowpass``, or ``level{j}_band{k}`` with j from 1, the finest."""
    return "lowpass" if info.name == "lowpass" else f"level{info.level + 1}_band{info.direction or 0}"


def shown_bands(subbands: Subbands[NDArray[Any]]) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Return the facts about every sub-band, coarse to fine, and its samples that stand on pixels of the image."""
    bands, arrays = [], {}
    for info, coefficients in subbands.items():
        band, shown = _lay_over(info, coefficients, subbands.layout)
        bands.append(band)
        arrays[band["array"]] = shown
    bands.sort(key=lambda band: -int(band["level"]))  # the lowpass, then coarse to fine
    return bands, arrays


def reconstruct(subbands: Subbands[NDArray[Any]], gains: Mapping[str, float]) -> NDArray[np.float32]:
    """Return the picture that sub-bands make when each is multiplied by its gain.

    Parameters
    ----------
    subbands
        Of `split`.
    gains
        Factor by the name of the array (`array_name`); a sub-band that is not named keeps its strength.

    Returns
    -------
    array
        (H, W) float32.

    Raises
    ------
    ParameterError
        If there is no such sub-band, or a gain is not finite.

    Examples
    --------
    >>> plane = np.random.default_rng(0).random((32, 32))
    >>> subbands = split(plane, ContourletOptions(levels=(2,)))
    >>> bool(np.allclose(reconstruct(subbands, {}), plane, atol=1e-6))
    True
    """
    names = [array_name(info) for info in subbands.describe()]
    for name, gain in gains.items():
        if name not in names:
            raise ParameterError(f"There is no sub-band {name!r}: use {', '.join(names)}.")
        if not math.isfinite(gain):
            raise ParameterError(f"The gain of {name} is {gain}: give a number.")
    scaled = [array * gains.get(name, 1.0) for name, array in zip(names, subbands.arrays(), strict=True)]
    return icontourlet(subbands.with_arrays(scaled)).astype(np.float32)


def denoised(scan: Scan, options: DenoiseOptions) -> NDArray[Any]:
    """Return an image without its noise, (H, W) or (H, W, C), in its own type; transparency is left as it is.

    Raises
    ------
    ParameterError
        If the image is not one plane.
    """
    single_plane(scan)  # checks it
    channels = move_axes(scan.data, scan.axes, "tzcyx")[0, 0]  # C H W
    clean = np.array(channels)
    opaque = slice(-1 if scan.channels[-1:] == ("alpha",) else None)
    smooth = denoise(channels[opaque].astype(np.float32), options.noise or None)
    if channels.dtype.kind in "iu":
        limits = np.iinfo(channels.dtype)
        smooth = np.clip(np.rint(smooth), limits.min, limits.max)
    elif channels.dtype.kind == "b":
        smooth = smooth > 0.5
    clean[opaque] = smooth.astype(channels.dtype)
    return clean[0] if "c" not in scan.axes else np.ascontiguousarray(clean.transpose(1, 2, 0))


def single_plane(scan: Scan, *, channel: int | None = None) -> Plane:
    """Return one channel, or the mean of all but transparency, of an image with a single plane.

    Examples
    --------
    >>> single_plane(Scan(np.arange(12).reshape(2, 2, 3), "yxc")).tolist()
    [[1.0, 4.0], [7.0, 10.0]]
    """
    planes = move_axes(scan.data, scan.axes, "tzcyx")  # T Z C H W
    if planes.shape[:2] != (1, 1):
        raise ParameterError(f"The image is a stack of {math.prod(planes.shape[:2])} planes: choose one of them.")
    if not planes.size or planes.dtype.kind not in "biuf":
        raise ParameterError(f"An image of shape {scan.data.shape} and type {planes.dtype} has no intensities.")
    channels: Plane = planes[0, 0].astype(np.float64)
    if not np.isfinite(channels).all():
        raise ParameterError("The image contains values that are not finite (NaN or infinity): replace them first.")
    if channel is None:
        mean: Plane = channels[: -1 if scan.channels[-1:] == ("alpha",) else None].mean(0)
        return mean
    if not 0 <= channel < len(channels):
        raise ParameterError(f"channel={channel} does not exist: the image has channels 0 to {len(channels) - 1}.")
    chosen: Plane = channels[channel]
    return chosen


def _lay_over(info: Subband, coefficients: Plane, layout: Layout) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Return the facts about a band and its samples that stand on pixels of the image."""
    translate: list[int] = []
    for axis in (0, 1):
        step, start = info.decimation[axis], info.origin[axis]
        turns = (start + layout.before[axis]) // step  # the transform runs on a torus: its last samples come first
        start -= turns * step
        first = min(max(0, -(start // step)), info.shape[axis] - 1)  # of a tiny image, the sample next to it
        translate.append(start + first * step)
        count = max(1, math.ceil((layout.shape[axis] - translate[axis]) / step))
        coefficients = np.roll(coefficients, turns, axis).take(range(first, first + count), axis)
    shown = coefficients.astype(np.float32)
    facts = {key: value for key, value in asdict(info).items() if key in ("name", "direction", "edge_angle", "wedge")}
    return facts | {
        "array": array_name(info),
        "level": info.level + 1,
        "scale": list(info.decimation),
        "translate": translate,
        "energy": float(np.square(shown, dtype=np.float64).sum()),
    }, shown


def _write(folder: Path, scan: Scan, bands: list[dict[str, Any]], arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write every array as a TIFF with the size of its pixels."""
    scales = {band["array"]: band["scale"] for band in bands}
    spacing = dict(zip(scan.spatial_axes, scan.spacing, strict=True)) if scan.spacing else None
    for name, array in arrays.items():
        scale = scales.get(name, (1, 1))
        size = None if spacing is None else (spacing["y"] * scale[0], spacing["x"] * scale[1])
        write_image(folder / f"{name}.tif", Scan(array, "yx", spacing=size, units=scan.units))
