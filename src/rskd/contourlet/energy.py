"""The energy of images in their sub-bands, and its gradient, without the sub-bands themselves.

By Parseval's theorem the sum of a sub-band's squares can be read from its spectrum, and since the energy is a
quadratic form `Σ_k w_k ‖T_k x‖²`, its gradient `2 Σ_k w_k T_kᵀ T_k x` comes from the same spectra. So the bands are
never brought back from the frequency domain: half of the Fourier transforms that the loss and its gradient would take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rskd.contourlet.bank import Operator, Operators, chunk_size, images_of, mix, spectra_of
from rskd.contourlet.banks import transform_operators
from rskd.contourlet.extension import extend
from rskd.contourlet.subbands import Layout

Shares = Sequence[Sequence[float]]
"""Weights of the channels of every set of operators."""


def weighted_energy(images: Tensor, layout: Layout, weights: Sequence[float]) -> Tensor:
    """Return `Σ_k w_k ‖y_k‖²` over all images, for the sub-bands y_k that a transform of this layout would give.

    Parameters
    ----------
    images
        (..., H, W), real; half precision is computed in float32.
    layout
        Of the transform.
    weights
        ≥ 0, one per sub-band in the order of `Subbands.arrays`.

    Returns
    -------
    Tensor
        Scalar, differentiable once.

    Examples
    --------
    >>> from rskd.contourlet import contourlet
    >>> image = torch.rand(32, 48)
    >>> subbands = contourlet(image, (3,))
    >>> energy = weighted_energy(image, subbands.layout, [1.0] * 9)
    >>> torch.allclose(energy, sum(subbands.energy()), rtol=1e-4)
    True
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    extended = extend(images.reshape(-1, *images.shape[-2:]), layout)
    energy: Tensor = _Energy.apply(
        extended, transform_operators(layout, "analysis", extended), _shares(layout, weights)
    )
    return energy


def _shares(layout: Layout, weights: Sequence[float]) -> Shares:
    """Give every channel the weight of its sub-band; a lowpass that goes on to the next level has none."""
    *bands, lowpass = weights
    if layout.nonsubsampled:
        return [[lowpass, *bands]]
    rest, shares = iter(bands), []
    for order in layout.levels:
        level = list(islice(rest, 2**order))
        shares.append([0.0, *(level if order else 4 * level)])  # an undivided level has four polyphase components
    shares[-1][0] = lowpass
    return shares


class _Energy(torch.autograd.Function):
    """The gradient is found along with the value, while the spectra of a few images are at hand."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, sets: list[Operators], shares: Shares) -> Tensor:
        chunks = torch.split(images, chunk_size(images, sets[0][0].shape))
        energies, gradients = zip(*(_energy(chunk, sets, shares) for chunk in chunks), strict=True)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(energies).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (2 * grad), None, None


def _energy(images: Tensor, sets: Sequence[Operators], shares: Shares) -> tuple[Tensor, Tensor]:
    """Return the energy of N × H × W and half its gradient, level by level."""
    (operators, *coarser), (own, *rest) = sets, shares
    spectra = spectra_of(images, operators)
    total, weighted = images.new_zeros(()), []
    for place, (aliases, op, weights) in enumerate(zip(spectra, operators, _split(own, operators), strict=True)):
        bands = mix(aliases, op.matrix)  # N K h w
        scaled = bands * bands.real.new_tensor(weights)[:, None, None]
        total = total + _inner_product(bands, scaled, op)
        if place == 0 and coarser:
            lowpass = torch.fft.irfft2(bands[:, 0], s=op.grid)
            energy, gradient = _energy(lowpass, coarser, rest)
            total, scaled[:, 0] = total + energy, torch.fft.rfft2(gradient)
        weighted.append(scaled)
    return total, images_of(weighted, operators)


def _split(weights: Sequence[float], operators: Operators) -> Iterator[list[float]]:
    rest = iter(weights)
    for op in operators:
        yield list(islice(rest, len(op.matrix)))


def _inner_product(a: Tensor, b: Tensor, op: Operator) -> Tensor:
    """Return Σ a·b of the images behind two half spectra N × K × h × w, by Parseval's theorem."""
    products = torch.view_as_real(a).flatten().dot(torch.view_as_real(b).flatten())
    mirrors = (0, -1) if op.grid[1] % 2 == 0 else (0,)  # every other column stands for two
    edges = [(torch.view_as_real(a[..., x]) * torch.view_as_real(b[..., x])).sum() for x in mirrors]
    return (2 * products - torch.stack(edges).sum()) / (op.grid[0] * op.grid[1])
