"""The banks that a transform consists of, built from the layout's filters and cached."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from torch import Tensor

from rskd.contourlet.bank import Channel, Operators, build_operators
from rskd.contourlet.cache import OperatorCache
from rskd.contourlet.directional import directional_responses, directions
from rskd.contourlet.filters import Taps
from rskd.contourlet.pyramid import pyramid_responses, residual_response
from rskd.contourlet.subbands import Layout

OPERATORS = OperatorCache()
"""Shared by all transforms of the process."""

Spec = tuple[str, tuple[int, int], tuple[int, ...], str, str]
"""Kind, grid, levels, pyramid filters, directional filters."""


def transform_operators(layout: Layout, side: str, like: Tensor) -> list[Operators]:
    """Return the operators to apply one after the other: one set per pyramid level, or a single one if nonsubsampled.

    `side` is `analysis` or `dual`; dtype and device are those of `like`. The lowpass is the first channel of each
    set, and the input of the next.
    """
    shape, names = layout.extended, (layout.pyramid, layout.directional)
    if layout.nonsubsampled:
        return [cached_operators(("nonsubsampled", shape, layout.levels, *names), side, like)]
    return [
        cached_operators(("level", (shape[0] >> level, shape[1] >> level), (order,), *names), side, like)
        for level, order in enumerate(layout.levels)
    ]


def cached_operators(spec: Spec, side: str, like: Tensor) -> Operators:
    """Return the operators of one bank, from the cache if they are there."""

    def build() -> Operators:
        return build_operators(_CHANNELS[spec[0]](spec), side=side, dtype=like.dtype, device=like.device)

    return OPERATORS.get((spec, side, like.dtype, like.device), build)


def directional_channels(spec: Spec) -> list[Channel]:
    """List the channels of the directional bank alone."""
    _, shape, (order,), _, directional = spec
    responses = zip(*directional_responses(order, shape, filters=directional), strict=True)
    return [
        Channel(leaf.decimation, leaf.shift, analysis, dual)
        for leaf, (analysis, dual) in zip(directions(order), responses, strict=True)
    ]


def level_channels(spec: Spec) -> list[Channel]:
    """List the channels of one pyramid level: the lowpass, then the residual seen by each direction.

    Without directional split (order 0) the residual is cut into its four polyphase components, which
    makes it a bank of the same form.
    """
    _, shape, (order,), pyramid, _ = spec
    h, g = pyramid_responses(shape, filters=pyramid)
    if order:
        split = directional_channels(spec)
    else:
        one = np.ones(shape)
        split = [Channel((2, 2), (i, j), one, one) for i in (0, 1) for j in (0, 1)]
    return [
        Channel((2, 2), (0, 0), h, g),
        *(
            Channel(
                channel.decimation,
                channel.shift,
                residual_response(channel.analysis, channel.shift, h, g),
                residual_response(channel.dual, channel.shift, g, h),
            )
            for channel in split
        ),
    ]


def nonsubsampled_channels(spec: Spec) -> list[Channel]:
    """List the channels of a nonsubsampled transform: the lowpass, then all levels and directions.

    Level j sees the pyramid and the directional responses at 2ʲω ("à trous"). The lowpass filters are
    scaled to unit gain at ω = 0. Analysis and synthesis of a level add up to one, because
    `Σ_k H_k G_k = 2**order` for the directional bank.
    """
    _, shape, orders, pyramid, directional = spec
    down = up = np.ones(shape)
    channels: list[Channel] = []
    for level, order in enumerate(orders):
        dilation = 2**level
        h, g = (response / 2 for response in pyramid_responses(shape, filters=pyramid, dilation=dilation))
        residual = 1 - h * g
        for analysis, dual in _undecimated_directions(order, shape, directional, dilation):
            channels.append(_undecimated(down * residual * analysis, up * dual))
        down, up = down * h, up * g
    return [_undecimated(down, up), *channels]


def _undecimated_directions(
    order: int, shape: tuple[int, int], directional: str, dilation: int
) -> list[tuple[Taps, Taps]]:
    if order == 0:
        return [(np.ones(shape), np.ones(shape))]
    analysis, synthesis = directional_responses(order, shape, filters=directional, dilation=dilation)
    return [(a, s / 2**order) for a, s in zip(analysis, synthesis, strict=True)]


def _undecimated(analysis: Taps, dual: Taps) -> Channel:
    return Channel((1, 1), (0, 0), analysis, dual)


_CHANNELS = {
    "level": level_channels,
    "directional": directional_channels,
    "nonsubsampled": nonsubsampled_channels,
}


@lru_cache(maxsize=64)
def noise_gains(layout: Layout) -> tuple[float, ...]:
    """Compute the standard deviation of every sub-band for white noise of standard deviation 1.

    The noise is white on the extended grid. At coarser levels the lowpass noise is coloured; its power
    spectrum is followed through filtering and decimation.

    Parameters
    ----------
    layout
        Of the transform's result.

    Returns
    -------
    tuple
        One number per sub-band, in the order of `Subbands.arrays`: fine to coarse, the lowpass last.

    Examples
    --------
    >>> import torch
    >>> from rskd.contourlet import contourlet
    >>> [round(gain, 2) for gain in noise_gains(contourlet(torch.zeros(64, 64), (3,)).layout)[:4]]
    [0.96, 0.93, 0.84, 0.73]
    """
    names = (layout.pyramid, layout.directional)
    if layout.nonsubsampled:
        channels = nonsubsampled_channels(("nonsubsampled", layout.extended, layout.levels, *names))
        lowpass, *bands = [_gain(channel.analysis) for channel in channels]
        return (*bands, lowpass)
    power, gains = np.ones(layout.extended), []
    for order in layout.levels:
        low, *channels = level_channels(("level", power.shape, (order,), *names))
        level = [_gain(channel.analysis, power) for channel in channels]
        gains += level if order else [float(np.sqrt(np.mean(np.square(level))))]
        rows, columns = (n // 2 for n in power.shape)
        power = (power * low.analysis**2).reshape(2, rows, 2, columns).mean((0, 2))
    return (*gains, float(np.sqrt(power.mean())))


def _gain(response: Taps, power: Taps | float = 1.0) -> float:
    return float(np.sqrt(np.mean(power * response**2)))
