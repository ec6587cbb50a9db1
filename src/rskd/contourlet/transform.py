"""The contourlet transform and its inverse, decimated and nonsubsampled, and the two stages they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rskd.contourlet.arrays import to_tensors
from rskd.contourlet.bank import adjoint, analyse
from rskd.contourlet.banks import transform_operators
from rskd.contourlet.extension import check_coefficients, crop, extend, plan_layout
from rskd.contourlet.subbands import ArrayT, Layout, Subbands


def contourlet(
    x: ArrayT,
    levels: Sequence[int] = (3, 2),
    *,
    pyramid: str = "9-7",
    directional: str = "pkva12",
    border: str = "periodic",
) -> Subbands[ArrayT]:
    """Decompose images into directional sub-bands of several scales.

    Parameters
    ----------
    x
        (..., H, W), real; torch tensor or numpy array, H and W at least 2. float16 and bfloat16 are computed in
        float32; numpy integers are computed in float64.
    levels
        log2 of the number of directions per pyramid level, finest first; 0 leaves a level undivided,
        1 does not exist. At most `max_levels(x.shape)` entries.
    pyramid, directional
        Names in `PYRAMID_FILTERS` and `DIRECTIONAL_FILTERS`.
    border
        `periodic`: the exact bank on the torus; a size that the decimation does not divide is extended
        by reflection at the bottom and right to the next one that it does. `symmetric`: also reflects
        over the support of the filters (at most one image size in all), so that nothing leaks from one
        edge to the opposite one; up to four times as many coefficients.

    Returns
    -------
    Subbands
        Lowpass and `bands[level][direction]` in the type, dtype and device of `x`.

    Raises
    ------
    ParameterError
        If levels, filters, border or the input's shape or type are not possible.

    Notes
    -----
    With sizes that need no extension there are 4/3 as many coefficients as pixels at most. The transform is
    linear and differentiable to any order.

    References
    ----------
    .. [1] M. N. Do, M. Vetterli, "The contourlet transform: an efficient directional multiresolution
       image representation", IEEE Trans. Image Process. 14(12), 2091-2106, 2005.

    Examples
    --------
    >>> import torch
    >>> image = torch.rand(2, 37, 53)
    >>> subbands = contourlet(image, (3, 2))
    >>> tuple(subbands.bands[0][0].shape)
    (2, 10, 28)
    >>> torch.allclose(icontourlet(subbands), image, atol=1e-5)
    True
    """
    return _forward(x, levels, pyramid=pyramid, directional=directional, border=border, nonsubsampled=False)


def nonsubsampled_contourlet(
    x: ArrayT,
    levels: Sequence[int] = (3, 2),
    *,
    pyramid: str = "9-7",
    directional: str = "pkva12",
    border: str = "periodic",
) -> Subbands[ArrayT]:
    """Decompose images into directional sub-bands that all keep the full size.

    Covariant under any shift of the image, at the price of `1 + Σ 2**levels` times as many numbers. All filters
    have zero phase, so that coefficient (i, j) of every sub-band belongs to pixel (i, j); the lowpass has unit
    gain. Any size runs without extension. Parameters and errors are those of `contourlet`.

    References
    ----------
    .. [1] A. L. da Cunha, J. Zhou, M. N. Do, "The nonsubsampled contourlet transform: theory, design, and
       applications", IEEE Trans. Image Process. 15(10), 3089-3101, 2006.

    Examples
    --------
    >>> import torch
    >>> image = torch.rand(37, 53)
    >>> subbands = nonsubsampled_contourlet(image, (3, 2))
    >>> tuple(subbands.bands[1][0].shape)
    (37, 53)
    >>> torch.allclose(inonsubsampled_contourlet(subbands), image, atol=1e-5)
    True
    """
    return _forward(x, levels, pyramid=pyramid, directional=directional, border=border, nonsubsampled=True)


def icontourlet(subbands: Subbands[ArrayT]) -> ArrayT:
    """Reconstruct images from their sub-bands, changed or not.

    Parameters
    ----------
    subbands
        As `contourlet` or `nonsubsampled_contourlet` returned them.

    Returns
    -------
    array
        (..., H, W) of the original shape; exact, up to rounding, if the sub-bands were not changed.

    Raises
    ------
    ParameterError
        If a sub-band has another shape than the transform gave it.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.random.default_rng(0).random((64, 64))
    >>> bool(np.allclose(icontourlet(contourlet(image)), image, atol=1e-12))
    True
    """
    tensors, restore = to_tensors(subbands.arrays())
    layout = subbands.layout
    check_coefficients(tensors, layout)
    return restore(crop(compose(tensors, layout), layout))


inonsubsampled_contourlet = icontourlet
"""The sub-bands know how they were made, so that both inverses are one function."""


def _forward(
    x: ArrayT, levels: Sequence[int], *, pyramid: str, directional: str, border: str, nonsubsampled: bool
) -> Subbands[ArrayT]:
    (image,), restore = to_tensors((x,))
    layout = plan_layout(
        (image.shape[-2], image.shape[-1]),
        levels,
        pyramid=pyramid,
        directional=directional,
        border=border,
        nonsubsampled=nonsubsampled,
    )
    bands, lowpass = decompose(extend(image, layout), layout)
    return Subbands(lowpass, bands, layout).map(restore)


def decompose(image: Tensor, layout: Layout) -> tuple[tuple[tuple[Tensor, ...], ...], Tensor]:
    """Run the analysis on an extended image: the bands by level and direction, and the lowpass."""
    sets = transform_operators(layout, "analysis", image)
    if layout.nonsubsampled:
        coarse, *flat = analyse(image, sets[0])
        rest = iter(flat)
        return tuple(tuple(next(rest) for _ in range(2**order)) for order in layout.levels), coarse
    coarse, bands = image, []
    for operators, order in zip(sets, layout.levels, strict=True):
        outputs = analyse(coarse, operators)
        coarse, details = outputs[0], outputs[1:]
        if order == 0:  # put the four polyphase components together again
            details = [F.pixel_shuffle(torch.stack(details, dim=-3), 2).squeeze(-3)]
        bands.append(tuple(details))
    return tuple(bands), coarse


def compose(arrays: list[Tensor], layout: Layout) -> Tensor:
    """Run the synthesis: from the sub-bands, fine to coarse and the lowpass last, to the extended image."""
    bands, coarse = arrays[:-1], arrays[-1]
    sets = transform_operators(layout, "dual", coarse)
    if layout.nonsubsampled:
        return adjoint([coarse, *bands], sets[0])
    for operators, order in zip(reversed(sets), reversed(layout.levels), strict=True):
        details = [bands.pop() for _ in range(2**order)][::-1]
        if order == 0:
            details = list(F.pixel_unshuffle(details[0].unsqueeze(-3), 2).unbind(-3))
        coarse = adjoint([coarse, *details], operators)
    return coarse
