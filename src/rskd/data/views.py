"""Training patches as views: each is known by its number, and the same for the same seed, whenever it is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from rskd.config import AugmentOptions, SamplingOptions, TrainOptions
from rskd.data.augmentation import augmented, cut
from rskd.data.sampling import Places
from rskd.data.slices import Slice
from rskd.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Patches of one step."""

    images: Tensor
    """B C H W."""
    targets: Tensor
    """B H W, class index or `IGNORE`; where classes may overlap B K H W, whether each is there (0, 1 or `IGNORE`)."""
    cases: tuple[str, ...]
    """B names: where each patch comes from."""
    views: tuple[int, ...]
    """B numbers: which view each patch is."""

    def part(self, patches: slice) -> Batch:
        """Return some of the patches.

        Examples
        --------
        >>> names = ("a", "b", "c", "d")
        >>> batch = Batch(torch.zeros(4, 1, 8, 8), torch.zeros(4, 8, 8), names, (0, 1, 2, 3))
        >>> batch.part(slice(1, 3)).cases
        ('b', 'c')
        """
        return Batch(self.images[patches], self.targets[patches], self.cases[patches], self.views[patches])


class PatchSampler:
    """Draws the batch of any step as a function of seed and step alone, so that a resumed run sees the same patches.

    Parameters
    ----------
    slices
        Planes to draw from.
    patch
        Side of a patch in pixels.
    batch_size
        Patches per batch.
    augment
        How patches are changed; ``None`` = only the place is random.
    sampling
        Where patches are cut.
    views
        Size of the pool of views: they are drawn once, and every pass over them is in another order. ``None`` = every
        view is new.
    seed
        Seed of the whole run.

    Raises
    ------
    DataError
        If there is no plane.

    Examples
    --------
    >>> plane = Slice("a", torch.rand(1, 64, 64), torch.ones(64, 64, dtype=torch.long))
    >>> sampler = PatchSampler([plane], patch=32, batch_size=2, views=4)
    >>> sorted(sampler.batch(0).views + sampler.batch(1).views)
    [0, 1, 2, 3]
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        *,
        patch: int,
        batch_size: int,
        augment: AugmentOptions | None = AugmentOptions(),  # noqa: B008 - frozen
        sampling: SamplingOptions = SamplingOptions(),  # noqa: B008 - frozen
        views: int | None = None,
        seed: int = 0,
    ) -> None:
        if not slices:
            raise DataError("There is no image to train on: choose a folder that has some.")
        self.views = views
        self._slices, self._patch, self._batch_size, self._seed = slices, patch, batch_size, seed
        self._augment, self._sampling = augment, sampling
        self._places = Places(slices, patch, sampling)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step (counted from 0)."""
        numbers = self.numbers(step)
        images, targets, cases = zip(*map(self.view, numbers), strict=True)
        return Batch(torch.stack(images), torch.stack(targets), cases, tuple(numbers))

    def numbers(self, step: int) -> list[int]:
        """Return the numbers of the views in the batch of a step."""
        positions = range(step * self._batch_size, (step + 1) * self._batch_size)
        if self.views is None:
            return list(positions)
        turns = (divmod(position, self.views) for position in positions)
        return [int(_order(self._seed, turn, self.views)[place]) for turn, place in turns]

    def view(self, number: int) -> tuple[Tensor, Tensor, str]:
        """Return image (C, patch, patch) and target ([K,] patch, patch) of a view, and the case it comes from."""
        rng = np.random.default_rng((self._seed, number))
        index, centre = self._places.draw(rng)
        plane = self._slices[index]
        if self._augment is None:
            return *cut(plane, centre, torch.eye(2), self._patch), plane.case
        return *augmented(plane, centre, self._patch, self._augment, rng), plane.case

    def digest(self) -> str:
        """Return the SHA-256 of all that decides what the views show: planes, options, seed and size of the pool."""
        plan = (
            self._seed, self.views, self._patch, self._sampling, self._augment,
            np.__version__, torch.__version__, torchvision.__version__,
        )  # fmt: skip
        digest = hashlib.sha256(repr(plan).encode())
        for plane in self._slices:
            digest.update(f"{tuple(plane.image.shape)}".encode())
            digest.update(plane.image.contiguous().numpy().data)
            digest.update(plane.target.contiguous().numpy().data)
        return digest.hexdigest()


def sampler_for(slices: Sequence[Slice], options: TrainOptions, *, image_size: int) -> PatchSampler:
    """Return the sampler that `options` describe; `image_size` is the side of a patch where they name none."""
    return PatchSampler(
        slices,
        patch=options.patch or image_size,
        batch_size=options.batch_size,
        augment=options.augmentation if options.augment else None,
        sampling=options.sampling,
        views=options.views,
        seed=options.seed,
    )


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, views: int) -> NDArray[np.int64]:
    """Return the order of a pool of views in one pass over it."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(turn,))).permutation(views)
