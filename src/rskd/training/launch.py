"""Where a training runs: in one process, or in several that share every batch (started by torchrun)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from rskd.compute import choose_device
from rskd.config import ComputeOptions, TrainOptions
from rskd.errors import ParameterError


def local_processes() -> int:
    """Return how many processes of this run share the computer, this one among them."""
    return _told_by_torchrun("LOCAL_WORLD_SIZE")


def _told_by_torchrun(name: str) -> int:
    launched = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    return int(os.environ[name]) if launched else 1


def launch(compute: ComputeOptions, training: TrainOptions) -> Fabric:
    """Return the device, the precision and the other processes of this training.

    Under ``torchrun`` every process joins the others; else there is this one alone.

    Parameters
    ----------
    compute
        Device.
    training
        Precision, and the batch that the processes share.

    Raises
    ------
    ParameterError
        If there are more processes than patches in a batch.
    ResourceError
        If this computer has no such device.

    Examples
    --------
    >>> fabric = launch(ComputeOptions(device="cpu"), TrainOptions())
    >>> fabric.world_size, fabric.is_global_zero
    (1, True)
    """
    processes, local = _told_by_torchrun("WORLD_SIZE"), local_processes()
    if processes > training.batch_size:
        raise ParameterError(
            f"batch_size={training.batch_size} does not suffice for {processes} processes: use {processes} or more."
        )
    fabric = Fabric(
        accelerator=choose_device(compute).type,
        devices=local,
        num_nodes=processes // local,
        strategy="ddp" if processes > 1 else "auto",
        precision=training.precision,
    )
    fabric.launch()
    return fabric


def added_up(fabric: Fabric, values: Tensor) -> Tensor:
    """Return the sum of `values` over all processes; every one of them has to ask."""
    if fabric.world_size == 1:
        return values
    total = fabric.all_reduce(values.to(fabric.device), reduce_op="sum")
    assert isinstance(total, Tensor)  # noqa: S101 - a tensor in, a tensor out
    return total.to(values.device)


def least(fabric: Fabric, value: int) -> int:
    """Return the smallest `value` of all processes; every one of them has to ask."""
    if fabric.world_size == 1:
        return value
    found = fabric.all_reduce(torch.tensor(value, device=fabric.device), reduce_op="min")
    assert isinstance(found, Tensor)  # noqa: S101 - as above
    return int(found)


def any_process(fabric: Fabric, flag: bool) -> bool:
    """Return whether `flag` holds in any process; every one of them has to ask."""
    return bool(added_up(fabric, torch.tensor(float(flag))))


@contextmanager
def drawn_from(seed: int, step: int, fabric: Fabric) -> Iterator[None]:
    """Let whatever is random in the networks (dropout) be a function of seed, step and process alone."""
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence((seed, step, fabric.global_rank)).generate_state(1)[0]))
        yield
