"""CDM: the contourlet decomposition module, texture distillation between the sub-bands of feature maps.

The maps of student and teacher are compared sub-band by sub-band in the contourlet domain. Every sub-band is
divided by its response to white noise, and the lowpass is left out: with it, and with mean squared errors, the
term would be little else than plain feature matching, since the transform keeps energies up to a small factor.

Source: D. Ji et al., "Structural and statistical texture knowledge distillation for semantic segmentation", CVPR 2022:
the contourlet decomposition module.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rskd.config import TextureOptions
from rskd.contourlet import (
    Layout,
    Subband,
    contourlet,
    noise_gains,
    nonsubsampled_contourlet,
    plan_layout,
    weighted_energy,
)
from rskd.distillation.fusion import pool_to
from rskd.errors import ParameterError

DIRECTIONAL_GRID = 12
"""Shorter side from which a grid carries directions."""
TWO_LEVEL_GRID = 28
"""Shorter side from which it carries eight of them, and four more on a second level."""
POOL = 8
"""Side, in pixels of the finest level, of the neighbourhood over which `energy` averages."""


def levels_for(grid: Sequence[int]) -> tuple[int, ...]:
    """Choose the levels that a feature map can carry: (3, 2), (2,), or (0,) without directions.

    Examples
    --------
    >>> levels_for((56, 56)), levels_for((14, 14))
    ((3, 2), (2,))
    """
    side = min(grid)
    if side >= TWO_LEVEL_GRID:
        return (3, 2)
    if side >= DIRECTIONAL_GRID:
        return (2,)
    warnings.warn(
        f"a {grid[0]}×{grid[1]} map carries no directions ({DIRECTIONAL_GRID} pixels are needed): "
        "the texture term compares its details undivided; choose a map of higher resolution",
        stacklevel=2,
    )
    return (0,)


def texture_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    levels: Sequence[int] | None = None,
    loss: str = "mse",
    nonsubsampled: bool = False,
    lowpass: bool = False,
    pyramid: str = "9-7",
    directional: str = "pkva12",
) -> Tensor:
    """Compare two feature maps by their contourlet sub-bands.

    Parameters
    ----------
    student, teacher
        B C H W, the same shape.
    levels
        log2 of the number of directions per pyramid level, finest first; None: as the grid allows.
    loss
        `mse`: squared difference of the coefficients. `energy`: squared difference of their locally averaged
        magnitude, which tolerates small shifts. `cosine`: one minus the cosine similarity over space. `cwd`:
        Kullback-Leibler divergence of the distributions over space (channel-wise distillation).
    nonsubsampled
        Use the shift-invariant transform.
    lowpass
        Compare the lowpass as well.
    pyramid, directional
        Filters of the transform.

    Returns
    -------
    Tensor
        Scalar ≥ 0: mean over levels of the mean over directions; zero for equal maps.

    Raises
    ------
    ParameterError
        If the shapes differ or the loss or transform is not possible.

    Examples
    --------
    >>> import torch
    >>> teacher = torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> float(texture_loss(teacher, teacher)), float(texture_loss(0 * teacher, teacher)) > 0
    (0.0, True)
    >>> bool(texture_loss(teacher + 1, teacher) < 1e-9)  # a constant offset is no texture
    True
    """
    if student.shape != teacher.shape or student.ndim != 4:
        raise ParameterError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be maps of one shape "
            "(B, C, H, W): project and resize them first, as TextureTerm does"
        )
    if loss not in ("mse", *COMPARISONS):
        raise ParameterError(f"loss={loss!r} is not known: use one of mse, {', '.join(COMPARISONS)}")
    orders = levels_for(student.shape[-2:]) if levels is None else tuple(levels)
    layout = plan_layout(
        (student.shape[-2], student.shape[-1]),
        orders,
        pyramid=pyramid,
        directional=directional,
        border="periodic",
        nonsubsampled=nonsubsampled,
    )
    if loss == "mse":  # the transform is linear: once, on the residual
        return weighted_energy(student - teacher, layout, _mean_weights(layout, lowpass)) / student[..., 0, 0].numel()
    pairs = zip(_normalised(student, layout), _normalised(teacher, layout), strict=True)
    distances = [(band.level, COMPARISONS[loss](s, t, band)) for (band, s), (_, t) in pairs]
    means = [
        torch.stack([value for at, value in distances if at == level]).mean()
        for level in range(_levels_compared(layout, lowpass))
    ]
    return torch.stack(means).mean()


def _levels_compared(layout: Layout, lowpass: bool) -> int:
    return len(layout.levels) + int(lowpass)  # the lowpass is the level after the last


@lru_cache(maxsize=64)
def _mean_weights(layout: Layout, lowpass: bool) -> tuple[float, ...]:
    """Return what a squared coefficient of every sub-band counts: normalised, and means of means over the levels."""
    levels, bands = _levels_compared(layout, lowpass), layout.describe()
    alike = Counter(band.level for band in bands)
    return tuple(
        (band.level < levels) / (levels * alike[band.level] * band.shape[0] * band.shape[1] * gain**2)
        for band, gain in zip(bands, noise_gains(layout), strict=True)
    )


def _normalised(maps: Tensor, layout: Layout) -> list[tuple[Subband, Tensor]]:
    """Transform, and divide every sub-band by its standard deviation for white noise."""
    decompose = nonsubsampled_contourlet if layout.nonsubsampled else contourlet
    subbands = decompose(maps, layout.levels, pyramid=layout.pyramid, directional=layout.directional)
    gains = noise_gains(layout)
    return [(band, y / gain) for (band, y), gain in zip(subbands.items(), gains, strict=True)]


def _energy(student: Tensor, teacher: Tensor, band: Subband) -> Tensor:
    """Squared difference of the magnitudes, averaged over cells of the same extent in the image for all directions."""
    extent = POOL * 2**band.level
    cell = [min(size, max(1, extent // step)) for size, step in zip(student.shape[-2:], band.decimation, strict=True)]
    pool = partial(F.avg_pool2d, kernel_size=cell, ceil_mode=True)
    return F.mse_loss(pool(student.abs()), pool(teacher.abs()))


def _cosine(student: Tensor, teacher: Tensor, band: Subband) -> Tensor:
    """One minus the cosine similarity of every channel's coefficients over space."""
    return 1 - F.cosine_similarity(student.flatten(2), teacher.flatten(2), dim=-1).mean()


def _channel_wise(student: Tensor, teacher: Tensor, band: Subband) -> Tensor:
    """Kullback-Leibler divergence of every channel's softmax over space, teacher first."""
    log_student, log_teacher = (y.flatten(2).log_softmax(-1) for y in (student, teacher))
    return F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(-1).mean()


COMPARISONS: Mapping[str, Callable[[Tensor, Tensor, Subband], Tensor]] = {
    "energy": _energy,
    "cosine": _cosine,
    "cwd": _channel_wise,
}
"""Distances between two sub-bands; `mse` needs none, since it compares before the transform."""


class TextureTerm(nn.Module):
    """CDM with the projector that brings the student's map to the teacher's channels.

    The projector is a 1×1 convolution without bias, which commutes with the transform. The teacher's side learns
    nothing: its map is standardised per channel with the statistics of the batch, or of every image by itself.
    Everything runs in float32.

    Parameters
    ----------
    student_channels, teacher_channels
        Channels of the two maps.
    options
        Loss, levels and filters.

    Examples
    --------
    >>> import torch
    >>> term = TextureTerm(16, 32, TextureOptions())
    >>> term(torch.rand(2, 16, 28, 28), torch.rand(2, 32, 56, 56)).shape
    torch.Size([])
    """

    def __init__(self, student_channels: int, teacher_channels: int, options: TextureOptions) -> None:
        super().__init__()
        self.projector = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)
        self.options = options

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of a student map (B, C, H, W) against the teacher's (B, C', H', W')."""
        options = self.options
        grid = min(student.shape[-2], teacher.shape[-2]), min(student.shape[-1], teacher.shape[-1])
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = (pool_to(maps.float(), grid) for maps in (student, teacher.detach()))
            weight = self.projector.weight.float().flatten(1).expand(len(student), -1, -1)
            projected = (weight @ student.flatten(2)).view(len(student), -1, *grid)
            return texture_loss(
                projected,
                torch.cat(
                    [standardise(maps) for maps in torch.split(teacher, 1 if options.per_image else len(teacher))]
                ),
                levels=options.levels,
                loss=options.loss,
                nonsubsampled=options.nonsubsampled,
                lowpass=options.lowpass,
                pyramid=options.pyramid,
                directional=options.directional,
            )


def standardise(maps: Tensor) -> Tensor:
    """Give every channel of B C H W zero mean and unit variance over the batch; nearly dead channels stay near zero.

    Examples
    --------
    >>> import torch
    >>> float(standardise(5 + 3 * torch.randn(4, 2, 32, 32)).std().round(decimals=2))
    1.0
    """
    centred = maps - maps.mean((0, 2, 3), keepdim=True)
    count = maps[:, 0].numel()
    deviation: Tensor = torch.linalg.vector_norm(centred, dim=(0, 2, 3), keepdim=True) / count**0.5
    tiny = torch.finfo(maps.dtype).tiny
    return centred / deviation.clamp_min(1e-3 * deviation.max()).clamp_min(tiny)
