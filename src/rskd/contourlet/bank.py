"""Filter banks that act on one grid, as matrices between polyphase components per frequency.

A filter followed by decimation with step (a, b) is, on the a·b polyphase components of its input, an
ordinary matrix of small periodic filters: in the Fourier domain one multiplication per frequency of the
*decimated* grid. So an analysis is: split into polyphase components, `rfft2`, mix, `irfft2`. The inverse
is the adjoint of a second bank of the same form, the dual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rskd.contourlet.filters import Taps


@dataclass(frozen=True)
class Channel:
    """One filter of a bank before it is put into matrix form.

    `analysis` and `dual` are real, even responses on the full grid; both are followed by the same
    `shift` (pixels) and `decimation` (step along rows and columns).
    """

    decimation: tuple[int, int]
    shift: tuple[int, int]
    analysis: Taps
    dual: Taps


@dataclass(frozen=True)
class Operator:
    """Channels that share a decimation: `matrix` is K × (a·b) × H/a × (W/b)//2+1, complex."""

    decimation: tuple[int, int]
    shape: tuple[int, int]
    matrix: Tensor

    @cached_property
    def adjoint_matrix(self) -> Tensor:
        """(a·b) × K × H/a × (W/b)//2+1."""
        return self.matrix.transpose(0, 1).conj().resolve_conj().contiguous()


@dataclass(frozen=True)
class Bank:
    """A bank and its dual, each as a few operators; the channels of all operators in order are the sub-bands."""

    analysis: tuple[Operator, ...]
    dual: tuple[Operator, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices, the adjoint ones included."""
        return 2 * sum(op.matrix.nbytes for op in (*self.analysis, *self.dual))


def build_bank(channels: Sequence[Channel], *, dtype: torch.dtype, device: torch.device) -> Bank:
    """Put channels into matrix form; neighbours with the same decimation share an operator."""
    groups: list[list[Channel]] = []
    for channel in channels:
        if groups and groups[-1][0].decimation == channel.decimation:
            groups[-1].append(channel)
        else:
            groups.append([channel])

    def operator(group: list[Channel], side: str) -> Operator:
        rows = [_polyphase(getattr(channel, side), channel) for channel in group]
        matrix = torch.from_numpy(np.stack(rows)).to(device, dtype.to_complex())
        return Operator(group[0].decimation, group[0].analysis.shape, matrix)

    return Bank(
        tuple(operator(group, "analysis") for group in groups),
        tuple(operator(group, "dual") for group in groups),
    )


def _polyphase(response: Taps, channel: Channel) -> np.ndarray:
    """Turn a response into its spectra on the polyphase components: (a·b) × H/a × (W/b)//2+1."""
    (a, b), (down, right) = channel.decimation, channel.shift
    taps = np.fft.ifft2(response).real
    components = [np.roll(taps, (i - down, j - right), axis=(0, 1))[::a, ::b] for i in range(a) for j in range(b)]
    return np.fft.rfft2(np.stack(components))


def _mix(spectra: Tensor, matrix: Tensor) -> Tensor:
    """Multiply per frequency: N × M × h × w spectra by a K × M × h × w matrix."""
    mixed = matrix[:, 0] * spectra[:, None, 0]
    for m in range(1, matrix.shape[1]):
        mixed.addcmul_(matrix[:, m], spectra[:, None, m])
    return mixed  # N K h w


def _analyse(x: Tensor, op: Operator) -> Tensor:
    """Filter and decimate N × H × W to N × K × H/a × W/b."""
    (a, b), (height, width) = op.decimation, op.shape
    parts = x.reshape(-1, height // a, a, width // b, b).permute(0, 2, 4, 1, 3).flatten(1, 2)  # N ab H/a W/b
    spectra = _mix(torch.fft.rfft2(parts), op.matrix)
    bands: Tensor = torch.fft.irfft2(spectra, s=(height // a, width // b))
    return bands


def _adjoint(bands: Tensor, op: Operator) -> Tensor:
    """Apply the transpose of `_analyse`: N × K × H/a × W/b to N × H × W."""
    (a, b), (height, width) = op.decimation, op.shape
    spectra = _mix(torch.fft.rfft2(bands), op.adjoint_matrix)
    parts: Tensor = torch.fft.irfft2(spectra, s=(height // a, width // b))
    return parts.reshape(-1, a, b, *parts.shape[-2:]).permute(0, 3, 1, 4, 2).reshape(-1, height, width)


class _Analysis(torch.autograd.Function):
    """The bank as one linear node: nothing is saved, and its backward is the other one's forward."""

    @staticmethod
    def forward(x: Tensor, operators: tuple[Operator, ...]) -> tuple[Tensor, ...]:
        return tuple(_analyse(x, op) for op in operators)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: object) -> None:
        ctx.operators = inputs[1]  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return _Adjoint.apply(ctx.operators, *grads), None  # type: ignore[attr-defined]


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(operators: tuple[Operator, ...], *bands: Tensor) -> Tensor:
        terms = [_adjoint(band, op) for band, op in zip(bands, operators, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total += term
        return total

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: object) -> None:
        ctx.operators = inputs[0]  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Analysis.apply(grad, ctx.operators)  # type: ignore[attr-defined]


def analyse(x: Tensor, operators: tuple[Operator, ...]) -> list[Tensor]:
    """Apply every channel to (..., H, W): a list of (..., H/a, W/b)."""
    outputs = _Analysis.apply(x.flatten(0, -3) if x.ndim > 2 else x[None], operators)
    return [band.reshape(*x.shape[:-2], *band.shape[-2:]) for group in outputs for band in group.unbind(1)]


def adjoint(bands: Sequence[Tensor], operators: tuple[Operator, ...]) -> Tensor:
    """Apply the transpose of `analyse`; with a bank's dual operators this is its inverse."""
    leading = bands[0].shape[:-2]
    stacks, first = [], 0
    for op in operators:
        group = bands[first : first + len(op.matrix)]
        stacks.append(torch.stack([band.reshape(-1, *band.shape[-2:]) for band in group], dim=1))
        first += len(op.matrix)
    x: Tensor = _Adjoint.apply(operators, *stacks)
    return x.reshape(*leading, *x.shape[-2:])
