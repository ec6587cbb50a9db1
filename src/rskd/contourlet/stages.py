"""The two stages of the contourlet transform, each on its own."""

from __future__ import annotations

from collections.abc import Sequence

from rskd.contourlet.arrays import to_tensors
from rskd.contourlet.bank import adjoint, analyse
from rskd.contourlet.banks import cached_operators
from rskd.contourlet.directional import directions
from rskd.contourlet.extension import MAX_ORDER, extend
from rskd.contourlet.filters import directional_pair
from rskd.contourlet.subbands import ArrayT, Layout, Subbands
from rskd.contourlet.transform import contourlet
from rskd.errors import ParameterError


def laplacian_pyramid(
    x: ArrayT, levels: int = 3, *, pyramid: str = "9-7", border: str = "periodic"
) -> Subbands[ArrayT]:
    """Decompose images into bandpass residuals of full rate and a lowpass; `icontourlet` is the inverse.

    This is `contourlet` with every level undivided, see there.

    Parameters
    ----------
    x
        (..., H, W).
    levels
        Number of levels; at most `max_levels(x.shape)`.
    pyramid, border
        As for `contourlet`.

    References
    ----------
    .. [1] M. N. Do, M. Vetterli, "Framing pyramids", IEEE Trans. Signal Process. 51(9), 2003.

    Examples
    --------
    >>> import torch
    >>> pyramid = laplacian_pyramid(torch.rand(64, 48), 2)
    >>> [tuple(level[0].shape) for level in pyramid.bands], tuple(pyramid.lowpass.shape)
    ([(64, 48), (32, 24)], (16, 12))
    """
    return contourlet(x, (0,) * levels, pyramid=pyramid, border=border)


def directional_bank(x: ArrayT, order: int = 3, *, directional: str = "pkva12") -> tuple[ArrayT, ...]:
    """Split images by direction alone, critically sampled.

    The bank does not reject the mean; as part of a contourlet transform it runs behind the pyramid's residual.

    Parameters
    ----------
    x
        (..., H, W); a size that is no multiple of `2**(order - 1)` is extended by reflection.
    order
        log2 of the number of directions, 2 … 8.
    directional
        Name in `DIRECTIONAL_FILTERS`.

    Returns
    -------
    tuple
        One array per direction, in the order of `contourlet`: the first half is decimated by `2**(order - 1)` along
        rows and 2 along columns, the second half the other way round.

    Examples
    --------
    >>> import torch
    >>> image = torch.rand(2, 40, 50)
    >>> bands = directional_bank(image, 3)
    >>> [tuple(band.shape) for band in bands[::4]]
    [(2, 10, 26), (2, 20, 13)]
    >>> torch.allclose(idirectional_bank(bands, image.shape), image, atol=1e-5)
    True
    """
    directional_pair(directional)
    (image,), restore = to_tensors((x,))
    step = _step(order)
    shape = image.shape[-2], image.shape[-1]
    extended = -(-shape[0] // step) * step, -(-shape[1] // step) * step
    image = extend(image, Layout(shape, extended, (0, 0), (order,), "", directional, "periodic"))
    operators = cached_operators(("directional", extended, (order,), "", directional), "analysis", image)
    return tuple(restore(band) for band in analyse(image, operators))


def idirectional_bank(bands: Sequence[ArrayT], shape: Sequence[int], *, directional: str = "pkva12") -> ArrayT:
    """Undo `directional_bank`.

    Parameters
    ----------
    bands
        As returned by it.
    shape
        Shape of the image; the last two entries count.
    directional
        Name of the filters that were used.
    """
    directional_pair(directional)
    order = len(bands).bit_length() - 1
    step = _step(order)
    tensors, restore = to_tensors(bands)
    extended = step * tensors[0].shape[-2], 2 * tensors[0].shape[-1]
    for leaf, band in zip(directions(order), tensors, strict=False):
        expected = extended[0] // leaf.decimation[0], extended[1] // leaf.decimation[1]
        if len(bands) != 2**order or tuple(band.shape[-2:]) != expected:
            raise ParameterError(
                f"{len(bands)} sub-bands of shapes {[tuple(b.shape) for b in bands]} do not belong to one directional "
                "bank: give them as directional_bank returned them"
            )
    operators = cached_operators(("directional", extended, (order,), "", directional), "dual", tensors[0])
    return restore(adjoint(tensors, operators)[..., : shape[-2], : shape[-1]])


def _step(order: int) -> int:
    if not 2 <= order <= MAX_ORDER:
        raise ParameterError(f"order={order}: log2 of the number of directions must be 2 … {MAX_ORDER}")
    return int(2 ** (order - 1))
