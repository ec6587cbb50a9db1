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
from itertools import groupby, islice
from typing import Any

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

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix and of its adjoint, which is made when it is needed."""
        return 2 * self.matrix.nbytes

    @cached_property
    def adjoint_matrix(self) -> Tensor:
        """(a·b) × K × H/a × (W/b)//2+1."""
        return self.matrix.transpose(0, 1).conj().resolve_conj().contiguous()


Operators = tuple[Operator, ...]


def build_operators(channels: Sequence[Channel], *, side: str, dtype: torch.dtype, device: torch.device) -> Operators:
    """Put one side (`analysis` or `dual`) of a bank into matrix form; neighbours with the same decimation share one.

    The channels of all operators in order are the sub-bands.
    """
    operators = []
    for decimation, group in groupby(channels, key=lambda channel: channel.decimation):
        members = list(group)
        rows = [_polyphase(getattr(channel, side), channel) for channel in members]
        matrix = torch.from_numpy(np.stack(rows)).to(device, dtype.to_complex())
        operators.append(Operator(decimation, members[0].analysis.shape, matrix))
    return tuple(operators)


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
    """All operators as one linear node: nothing is saved, and its backward is the other one's forward."""

    @staticmethod
    def forward(x: Tensor, operators: Operators) -> tuple[Tensor, ...]:
        return tuple(_analyse(x, op) for op in operators)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        ctx.operators = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Adjoint.apply(ctx.operators, *grads), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = _Analysis.apply(tangent, ctx.operators)
        return outputs

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, operators: Operators) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _Analysis.apply(x.movedim(in_dims[0], 0).flatten(0, 1), operators)
        return tuple(y.unflatten(0, (info.batch_size, -1)) for y in outputs), (0,) * len(outputs)


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(operators: Operators, *stacks: Tensor) -> Tensor:
        total, *terms = (_adjoint(stack, op) for stack, op in zip(stacks, operators, strict=True))
        for term in terms:
            total += term
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        ctx.operators = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Analysis.apply(grad, ctx.operators)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor) -> Tensor:
        output: Tensor = _Adjoint.apply(ctx.operators, *tangents)
        return output

    @staticmethod
    def vmap(info: Any, in_dims: Any, operators: Operators, *stacks: Tensor) -> tuple[Tensor, int]:
        moved = [
            stack.expand(info.batch_size, *stack.shape) if dim is None else stack.movedim(dim, 0)
            for stack, dim in zip(stacks, in_dims[1:], strict=True)
        ]
        output = _Adjoint.apply(operators, *(stack.flatten(0, 1) for stack in moved))
        return output.unflatten(0, (info.batch_size, -1)), 0


def analyse(x: Tensor, operators: Operators) -> list[Tensor]:
    """Apply every channel to (..., H, W): a list of (..., H/a, W/b)."""
    outputs = _Analysis.apply(x.reshape(-1, *x.shape[-2:]), operators)
    return [band.reshape(*x.shape[:-2], *band.shape[-2:]) for stack in outputs for band in stack.unbind(1)]


def adjoint(bands: Sequence[Tensor], operators: Operators) -> Tensor:
    """Apply the transpose of `analyse`; with the dual operators of a bank this is its inverse."""
    leading, rest = bands[0].shape[:-2], iter(bands)
    stacks = [
        torch.stack([band.reshape(-1, *band.shape[-2:]) for band in islice(rest, len(op.matrix))], dim=1)
        for op in operators
    ]
    x: Tensor = _Adjoint.apply(operators, *stacks)
    return x.reshape(*leading, *x.shape[-2:])
