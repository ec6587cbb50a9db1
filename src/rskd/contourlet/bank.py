"""Filter banks that act on one grid, as one small matrix per frequency.

A filter followed by decimation with step (a, b) mixes, at every frequency of the *decimated* grid, a·b numbers of its
input: along columns those are the b polyphase components (so that real FFTs keep their half spectra), along rows the
a aliases (which lie in one spectrum, so that channels with the same b share it). So an analysis is: split the columns,
`rfft2`, mix, `irfft2`. The inverse is the adjoint of a second bank of the same form, the dual.
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

CHUNK = 2**18
"""Pixels to work on at a time on a CPU: intermediate arrays that fit the caches and are not returned to the system."""


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
    """Channels that share a decimation: `matrix` is K × (b·a) × H/a × (W/b)//2+1, complex."""

    decimation: tuple[int, int]
    shape: tuple[int, int]
    matrix: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a sub-band."""
        return self.shape[0] // self.decimation[0], self.shape[1] // self.decimation[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix and of its adjoint, which is made when it is needed."""
        return 2 * self.matrix.nbytes

    @cached_property
    def adjoint_matrix(self) -> Tensor:
        """(b·a) × K × H/a × (W/b)//2+1."""
        return self.decimation[0] * self.matrix.transpose(0, 1).conj().resolve_conj().contiguous()


Operators = tuple[Operator, ...]


def build_operators(channels: Sequence[Channel], *, side: str, dtype: torch.dtype, device: torch.device) -> Operators:
    """Put one side (`analysis` or `dual`) of a bank into matrix form; neighbours with the same decimation share one.

    The channels of all operators in order are the sub-bands.
    """
    operators = []
    for decimation, group in groupby(channels, key=lambda channel: channel.decimation):
        members = list(group)
        rows = [_mixing_row(getattr(channel, side), channel) for channel in members]
        matrix = torch.from_numpy(np.stack(rows)).to(device, dtype.to_complex())
        operators.append(Operator(decimation, members[0].analysis.shape, matrix))
    return tuple(operators)


def _mixing_row(response: Taps, channel: Channel) -> np.ndarray:
    """Turn a response into its factors for every component: (b·a) × H/a × (W/b)//2+1."""
    (a, b), (down, right) = channel.decimation, channel.shift
    taps = np.fft.ifft2(response).real
    components = [np.roll(taps, (-down, j - right), axis=(0, 1))[:, ::b] for j in range(b)]
    factors: np.ndarray = np.fft.rfft2(np.stack(components)) / a  # b H w
    return factors.reshape(b * a, len(taps) // a, -1)


def _spectra(x: Tensor, b: int) -> Tensor:
    """Split columns into polyphase components and transform: N × H × W to N × b × H × (W/b)//2+1."""
    rows, columns = x.shape[-2:]
    spectra: Tensor = torch.fft.rfft2(x.reshape(-1, rows, columns // b, b).permute(0, 3, 1, 2))
    return spectra


def mix(spectra: Tensor, matrix: Tensor) -> Tensor:
    """Multiply per frequency: N × M × h × w spectra by a K × M × h × w matrix."""
    mixed = matrix[:, 0] * spectra[:, None, 0]
    for m in range(1, matrix.shape[1]):
        mixed.addcmul_(matrix[:, m], spectra[:, None, m])
    return mixed  # N K h w


def chunk_size(images: Tensor, shape: tuple[int, int]) -> int:
    """Return how many images to work on at a time."""
    return max(1, CHUNK // (shape[0] * shape[1])) if images.device.type == "cpu" else max(1, len(images))


def _analyse(x: Tensor, operators: Operators) -> tuple[Tensor, ...]:
    """Filter and decimate N × H × W: for each operator N × K × H/a × W/b."""
    if not len(x):  # not every Fourier transform takes nothing
        return tuple(x.new_zeros(0, len(op.matrix), *op.grid) for op in operators)
    parts = [_analyse_chunk(chunk, operators) for chunk in torch.split(x, chunk_size(x, operators[0].shape))]
    return parts[0] if len(parts) == 1 else tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


def _analyse_chunk(x: Tensor, operators: Operators) -> tuple[Tensor, ...]:
    pairs = zip(spectra_of(x, operators), operators, strict=True)
    return tuple(torch.fft.irfft2(mix(aliases, op.matrix), s=op.grid) for aliases, op in pairs)


def spectra_of(x: Tensor, operators: Operators) -> list[Tensor]:
    """Return what each operator mixes, from images N × H × W: N × b·a × H/a × (W/b)//2+1."""
    spectra = {b: _spectra(x, b) for b in {op.decimation[1] for op in operators}}
    return [  # a view: the aliases of one component are its rows
        spectra[op.decimation[1]].reshape(len(x), *op.matrix.shape[1:]) for op in operators
    ]


def _adjoint(stacks: Sequence[Tensor], operators: Operators) -> Tensor:
    """Apply the transpose of `_analyse`: N × K × H/a × W/b each to N × H × W."""
    if not len(stacks[0]):
        return stacks[0].new_zeros(0, *operators[0].shape)
    size = chunk_size(stacks[0], operators[0].shape)
    parts = [
        _adjoint_chunk(chunks, operators)
        for chunks in zip(*(torch.split(stack, size) for stack in stacks), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _adjoint_chunk(stacks: Sequence[Tensor], operators: Operators) -> Tensor:
    return images_of([torch.fft.rfft2(stack) for stack in stacks], operators)


def images_of(bands: Sequence[Tensor], operators: Operators) -> Tensor:
    """Apply the adjoint of every operator to spectra N × K × H/a × (W/b)//2+1 and add up: images N × H × W."""
    rows, columns = operators[0].shape
    totals: dict[int, Tensor] = {}
    for stack, op in zip(bands, operators, strict=True):
        b = op.decimation[1]
        mixed = mix(stack, op.adjoint_matrix)
        spectra = mixed.reshape(len(stack), b, rows, mixed.shape[-1])
        totals[b] = totals[b].add_(spectra) if b in totals else spectra
    parts = [torch.fft.irfft2(total, s=(rows, columns // b)) for b, total in totals.items()]  # N b H W/b
    images = [part.permute(0, 2, 3, 1).reshape(-1, rows, columns) for part in parts]
    x: Tensor = images.pop()
    for image in images:
        x = x + image
    return x


class _Analysis(torch.autograd.Function):
    """All operators as one linear node: nothing is saved, and its backward is the other one's forward."""

    @staticmethod
    def forward(x: Tensor, operators: Operators) -> tuple[Tensor, ...]:
        return _analyse(x, operators)

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
        return _adjoint(stacks, operators)

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
