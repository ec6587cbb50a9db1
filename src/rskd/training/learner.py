"""One step: a batch in, its losses out, and the student a little better; the processes of a run share the batch."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from rskd.config import TrainOptions
from rskd.data import Batch
from rskd.distillation.objective import Objective
from rskd.errors import ResourceError, is_out_of_memory
from rskd.events import Message, Task
from rskd.models.segmenter import Segmenter
from rskd.training.average import RunningMean
from rskd.training.guards import Buffers, check_first_losses, check_terms, first_bad, without_gradient
from rskd.training.launch import added_up, drawn_from, least
from rskd.training.statistics import settle

Losses = dict[str, float]
"""Every term unweighted, and the weighted sum as `total`."""


class Learner:
    """The networks, the optimiser, and one step of both.

    Parameters
    ----------
    objective
        The student with its losses.
    options
        Optimiser, batch and precision.
    fabric
        Device, precision and the other processes.
    """

    def __init__(self, objective: Objective, options: TrainOptions, fabric: Fabric) -> None:
        self.objective, self.options, self.fabric = objective.to(fabric.device).train(), options, fabric
        # one kernel for all weights; under 16-mixed it would undo the scaling itself, before the gradients are clipped
        fused = fabric.device.type in ("cpu", "cuda") and options.precision != "16-mixed"
        self.optimizer = torch.optim.AdamW(objective.parameters(), weight_decay=options.weight_decay, fused=fused)
        self.mean = RunningMean(objective.student, options.ema) if options.ema else None
        self.share = slice(fabric.global_rank, None, fabric.world_size)
        own = len(range(options.batch_size)[self.share])
        self.micro = math.ceil(own / options.accumulate)
        """Patches of this process that are worked through together."""
        self.fits: int | None = None
        """The same, once the memory ran out."""
        self._buffers = Buffers(objective)
        self._calibrated = False  # whether the last step has set the weights

    @property
    def student(self) -> Segmenter:
        """The network that is validated and kept: the student, or the running mean of its weights."""
        return self.objective.student if self.mean is None else self.mean.network

    # ------------------------------------------------------------------------------------------------------ beginning

    def rehearse(self, batch: Batch) -> Task[None]:
        """Go through the first step without taking it, and join the other processes.

        Every term must say something, and the memory must do. What no term reaches is frozen: processes wait for the
        gradient of everything else.

        Parameters
        ----------
        batch
            Of the first step.

        Raises
        ------
        RskdError
            If a term is not a number, or zero.
        ResourceError
            If not even a single patch fits into the memory.
        """
        while True:
            try:
                part = batch.part(self.share).part(slice(self.micro))
                losses = self._rehearse(part)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            yield self._halve()
        self._fit(least(self.fabric, self.fits or self.options.batch_size))
        for parameter in without_gradient(self.objective):
            parameter.requires_grad_(False)
        self.optimizer.zero_grad(set_to_none=True)
        check_terms(losses, self.objective.options)
        for warning in check_first_losses(losses, part):
            yield Message(warning, warning=True)
        self._module, self._stepper = self.fabric.setup(self.objective, self.optimizer)

    def _rehearse(self, part: Batch) -> Losses:
        """Return the losses of a part, and leave the gradients behind, but no trace in the statistics of batch norm."""
        self._buffers.keep()
        try:
            with drawn_from(self.options.seed, 0, self.fabric), self.fabric.autocast():
                losses = self.objective(*self._on_device(part))
                torch.autograd.backward(self.objective.total(losses))
            return {name: loss.item() for name, loss in losses.items()}
        finally:
            self._buffers.put_back()

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        return batch.images.to(self.fabric.device), batch.targets.to(self.fabric.device), batch.views

    # ------------------------------------------------------------------------------------------------------- one step

    def learn(self, batch: Batch, step: int, *, rate: float, ramp: float) -> Task[tuple[Losses, str | None]]:
        """Take one optimiser step, unless something in it is not a number.

        Parameters
        ----------
        batch
            All of it, in every process.
        step
            From 0; decides what is random in the networks.
        rate
            Learning rate.
        ramp
            Factor (0 … 1) of the terms that rise.

        Yields
        ------
        Message
            If the memory ran out and the batch is worked through in smaller parts; if it has set the weights.

        Returns
        -------
        tuple of dict and (str or None)
            The losses, alike in all processes; and what is not a number, if anything: then nothing has changed.
        """
        self._buffers.keep()
        losses = yield from self._gradients(batch, step, ramp)
        norm = self.fabric.clip_gradients(
            self._module, self._stepper, max_norm=self.options.clip, error_if_nonfinite=False
        )
        assert norm is not None  # noqa: S101 - it is given for max_norm
        scaler = self._precision.state_dict()  # of 16-mixed: what is too large for it, it handles itself
        bad = first_bad(losses if scaler else losses | {"gradient": norm.item()})
        if bad is not None:
            self._buffers.put_back()
            self.optimizer.zero_grad(set_to_none=True)
            if scaler:
                self._precision.scaler.update()
            return losses, bad
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._stepper.step()
        if self.mean is not None:
            self.mean.update(self.objective.student, step + 1)
        if self._calibrated:
            yield self._weights_set(step)
        return losses, None

    def settle(self, batches: Iterable[Batch]) -> None:
        """Measure the statistics of batch norm anew, for the weights as they are.

        Every process does all batches; those that are not numbers are left out. What steps draw stays the same.
        """
        parts = [
            batch.part(slice(start, start + self.micro)).images
            for batch in batches
            for start in range(0, len(batch.cases), self.micro)
        ]
        with drawn_from(self.options.seed, 0, self.fabric):
            settle(self.student, [part.to(self.fabric.device) for part in parts if part.isfinite().all()])

    @property
    def _precision(self) -> Any:
        return self.fabric.strategy.precision

    def _gradients(self, batch: Batch, step: int, ramp: float) -> Task[Losses]:
        """Compute the gradients of a batch, in smaller parts where the memory does not suffice.

        An attempt that failed leaves no trace, neither in the statistics of batch norm nor in the calibration.
        """
        while True:
            try:
                return self._accumulate(batch, step, ramp)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._buffers.put_back()
            halved = self._halve()
            if self.fabric.world_size > 1:  # the others wait for the gradient of the whole share
                raise ResourceError(
                    f"The memory of process {self.fabric.global_rank} ran out at step {step + 1}: resume the run, "
                    "which then works through the batch in smaller parts."
                )
            yield halved

    def _halve(self) -> Message:
        """Work through the batch in parts of half the size from now on."""
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.fabric.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.micro == 1:
            raise ResourceError("Not even a single patch fits into the memory: use smaller patches, or the CPU.")
        self._fit(math.ceil(self.micro / 2))
        return Message(
            f"The memory ran out: every batch of {self.options.batch_size} patches is worked through in parts of "
            f"{self.micro} from now on, which is slower.",
            warning=True,
        )

    def _fit(self, patches: int) -> None:
        """Work through no more than `patches` together."""
        if patches < self.micro:
            self.micro = self.fits = patches

    def _accumulate(self, batch: Batch, step: int, ramp: float) -> Losses:
        """Add up the gradients of the parts of this process's share of `batch`, and take the sum of all processes."""
        own = batch.part(self.share)
        starts = range(0, len(own.cases), self.micro)
        self.optimizer.zero_grad(set_to_none=True)
        sums: Tensor | None = None
        losses: Mapping[str, Tensor] = {}
        with drawn_from(self.options.seed, step, self.fabric):
            for start in starts:
                part = own.part(slice(start, start + self.micro))
                share = len(part.cases) / len(batch.cases)
                with self.fabric.no_backward_sync(self._module, enabled=start != starts[-1]):
                    losses = self._module(*self._on_device(part))
                    if start == 0:
                        self._calibrated = self.objective.calibrate(losses, partial(added_up, self.fabric))
                    total = self.objective.total(losses, ramp=ramp)
                    self.fabric.backward(total * (share * self.fabric.world_size))  # of which the mean is taken
                values = share * torch.stack([*losses.values(), total]).detach()
                sums = values if sums is None else sums + values
        assert sums is not None  # noqa: S101 - there is at least one patch
        return dict(zip((*losses, "total"), added_up(self.fabric, sums).tolist(), strict=True))

    def _weights_set(self, step: int) -> Message:
        objective = self.objective
        names = objective.calibration.names if objective.calibration is not None else []
        weights = ", ".join(f"{name} {objective.weight(name):.3g}" for name in names)
        return Message(f"The weights are set by the gradients of step {step + 1}: {weights}.")

    # --------------------------------------------------------------------------------------------------- checkpointing

    def state(self) -> dict[str, Any]:
        """Return everything that a later step depends on."""
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "mean": None if self.mean is None else self.mean.network.state_dict(),
            "precision": self._precision.state_dict(),
            "fits": self.fits,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go back to a state, whatever the number of processes was."""
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.mean is not None:
            self.mean.network.load_state_dict(state["mean"])
        self._precision.load_state_dict(state["precision"])
        if state["fits"] is not None:
            self._fit(state["fits"])

    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Go on with these weights of the student, and forget how the optimiser came to where it was."""
        for network in (self.objective.student, self.student):
            network.load_state_dict(weights)
        self.optimizer.state.clear()
