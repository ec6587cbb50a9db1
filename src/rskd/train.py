"""Train a network on masks, or distill a student from a teacher: one loop that yields events and can be resumed.

The batch of a step depends on the seed and the step alone, so a run that was killed and resumed ends with the same
weights, bit for bit, as one that was left alone (same machine, CPU, same number of threads).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import torch
from lightning_fabric import Fabric

from rskd.cases import Case, case_id, find_cases, split_cases
from rskd.compute import use_threads
from rskd.config import DistillOptions, ModelSpec
from rskd.data import Slice, load_slices, trained_on
from rskd.distillation.feasible import feasible
from rskd.distillation.objective import Objective
from rskd.errors import DataError, FileError, LeftOffError, RskdError
from rskd.events import Command, Epoch, Message, Progress, Step, Task, drain
from rskd.jobs import DOWNLOAD, DistillJob, Outcome, ResumeJob, TrainJob
from rskd.models.passport import identity
from rskd.models.presets import PRESETS, weight_file
from rskd.models.segmenter import Segmenter
from rskd.pair import check_patch, networks_for
from rskd.report import write_report
from rskd.report.preview import Preview
from rskd.runs import Order, RunFolder
from rskd.training.launch import launch, local_processes
from rskd.training.recording import record
from rskd.training.trainer import Trainer

AnyTraining = TypeVar("AnyTraining", TrainJob, DistillJob)
TASK_ONLY = DistillOptions.model_validate({name: {"weight": 0} for name in ("logits", "ranking", "texture", "fusion")})


def train(job: TrainJob) -> Task[Outcome]:
    """Train a network on masks alone; events and result as for `distill`."""
    return (yield from _start(_settled(job)))


def distill(job: DistillJob) -> Task[Outcome]:
    """Train a student from a teacher.

    Parameters
    ----------
    job
        Teacher, student, data, run folder and options.

    Yields
    ------
    Event
        `Message` and `Progress` while it prepares and validates, a `Step` per optimiser step, an `Epoch` per
        validation. `Command.STOP` sent at any of them ends the run after the current step, with the best so far.

    Returns
    -------
    Outcome
        ``{"run", "student", "dice", "epochs", "stopped"}``; `student` is the file with the best network.

    Raises
    ------
    RskdError
        One sentence, for whatever the user can mend.
    """
    return (yield from _start(_settled(job)))


def resume(job: ResumeJob) -> Task[Outcome]:
    """Go on with an interrupted run from its last checkpoint; events and result as for `distill`."""
    folder = RunFolder(job.run)
    settings = folder.job()
    return (yield from _run(folder, launch(settings.compute, settings.training)))


def _settled(job: AnyTraining) -> AnyTraining:
    """Return the job with every path made absolute, so that it can be resumed from anywhere."""
    data = {
        name: path.absolute()
        for name in ("images", "masks", "regions")
        if (path := getattr(job.data, name)) is not None
    }
    field = "model" if isinstance(job, TrainJob) else "student"
    network = getattr(job, field)
    changes: dict[str, object] = {"data": job.data.model_copy(update=data), "run": job.run.absolute()}
    if network not in PRESETS:
        changes[field] = str(weight_file(Path(network)).absolute())
    if isinstance(job, DistillJob):
        changes["teacher"] = weight_file(job.teacher).absolute()
    if job.pretrained is not None and job.pretrained != DOWNLOAD:
        changes["pretrained"] = job.pretrained.absolute()
    return job.model_copy(update=changes)


def _start(job: TrainJob | DistillJob) -> Task[Outcome]:
    fabric = launch(job.compute, job.training)
    if fabric.is_global_zero:
        RunFolder.create(job)
    fabric.barrier()
    return (yield from _run(RunFolder(job.run), fabric))


def _run(folder: RunFolder, fabric: Fabric) -> Task[Outcome]:
    """Train; of several processes only the first one writes, and tells what happens."""
    if not fabric.is_global_zero:
        return drain(_work(folder, fabric))
    with folder.locked():
        folder.take_order()  # one that came too late for the process before
        outcome = yield from _obeying(folder, _work(folder, fabric), alone=fabric.world_size == 1)
        if folder.job().training.report:
            yield from _report(folder, stopped=outcome.value["stopped"])
        return outcome


def _obeying(folder: RunFolder, work: Task[Outcome], *, alone: bool) -> Task[Outcome]:
    """Do the work, and what is ordered meanwhile by way of the folder; several processes can only be stopped."""
    command: Command | None = None
    stopped = pausing = due = False
    rounds = folder.job().training.steps_per_epoch
    try:
        while True:
            event = work.send(command)
            command = yield event
            if isinstance(event, Step | Epoch):  # a validation that is due is not begun again after a pause
                due = isinstance(event, Step) and event.step % rounds == 0
            order = folder.take_order()
            pausing = pausing or (order is Order.PAUSE and alone)
            if pausing and not due:
                raise LeftOffError(f"The run was paused, as was asked for: go on with `rskd resume {folder.path}`.")
            stopped = stopped or (order is not None and not pausing)
            command = Command.STOP if stopped else command
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome
    finally:
        work.close()


def _report(folder: RunFolder, *, stopped: bool) -> Task[None]:
    """Write the report, without pictures after a stop, since these take their time; a failure is a warning."""
    try:
        yield from write_report(folder, folder.job().compute, pictures=not stopped)
    except Exception as error:  # the student is there, and no report is worth losing it
        reason = str(error) if isinstance(error, RskdError) else f"{type(error).__name__}."
        text = f"The report could not be written: {reason} `rskd report` with the run folder tries again."
        yield Message(text, warning=True)


def _work(folder: RunFolder, fabric: Fabric) -> Task[Outcome]:
    trainer, preview = yield from _prepare(folder, fabric)
    stopped = yield from _drawn(trainer, preview)
    return Outcome(
        {
            "run": str(folder.path),
            "student": str(folder.best),
            "dice": trainer.best,
            "epochs": trainer.step // trainer.options.steps_per_epoch,
            "stopped": stopped,
        }
    )


def _drawn(trainer: Trainer, preview: Preview | None) -> Task[bool]:
    """Train, and draw what the student makes of some images before the first step and after every round."""
    if preview is None:
        return (yield from trainer.fit())
    preview.draw(trainer.learner.student)
    work, command = trainer.fit(), None
    try:
        while True:
            event = work.send(command)
            if isinstance(event, Epoch):
                preview.draw(trainer.learner.student)
            command = yield event
    except StopIteration as end:
        stopped: bool = end.value
        return stopped
    finally:
        work.close()


def _prepare(folder: RunFolder, fabric: Fabric) -> Task[tuple[Trainer, Preview | None]]:
    """Read what the job names, and begin."""
    job = folder.job()
    threads = use_threads(job.compute, processes=local_processes())
    training, validation = split_cases(find_cases(job.data), job.data, job.training.seed)
    with torch.random.fork_rng():
        torch.manual_seed(job.training.seed)
        student, teacher = networks_for(job, training[0])
        wanted = job.distillation if isinstance(job, DistillJob) else TASK_ONLY
        terms, missing = (wanted, []) if teacher is None else feasible(wanted, teacher)
        objective = Objective(student, teacher, terms, job.training.loss)
    check_patch(job.training, student, teacher)
    where = f"on {fabric.device} with {threads} threads"
    if fabric.world_size > 1:
        where += f" in each of {fabric.world_size} processes"
    if fabric.is_global_zero:
        folder.tidy()
    log = folder if fabric.is_global_zero else None
    yield from _say(log, Message(f"{len(training)} images to train on, {len(validation)} for validation; {where}."))
    for sentence in missing:
        yield from _say(log, Message(sentence, warning=True))
    planes = yield from _load(training, student.spec, log, skip=job.data.skip_unreadable)
    held_out = yield from _load(validation, student.spec, log, skip=job.data.skip_unreadable)
    if objective.options.task and not any((plane.target >= 0).any() for plane in planes):
        raise DataError("No training image has a mask: choose a folder of masks, or set the weight of the task to 0.")
    student.spec = trained_on(student.spec, [*planes, *held_out])
    if teacher is not None:
        teacher.to(fabric.device)
    origin = {"training": _fingerprints(training), "validation": _fingerprints(validation)}
    if isinstance(job, DistillJob):
        origin["teacher"] = [identity(job.teacher)]
    ids = {case.name: case_id(case) for case in validation}
    trainer = Trainer(folder, objective, planes, held_out, origin=origin, case_ids=ids, fabric=fabric)
    yield from trainer.begin(teacher)
    if fabric.is_global_zero:
        sides = {"training": (training, planes), "validation": (validation, held_out)}
        for message in record(trainer, teacher, sides, threads=threads):
            yield from _say(log, message)
    return trainer, _preview(trainer, teacher)


def _preview(trainer: Trainer, teacher: Segmenter | None) -> Preview | None:
    """Return the pictures that are wanted; one process draws them."""
    count = trainer.options.preview
    if not count or not trainer.fabric.is_global_zero:
        return None
    colors = [info.color for info in trainer.learner.student.spec.classes]
    preview = Preview(trainer.folder, trainer.held_out, count=count, colors=colors)
    if teacher is not None:
        preview.meet(teacher)
    return preview


def _say(log: RunFolder | None, message: Message, *, shown: str | None = None) -> Task[None]:
    """Log a message and show it; `shown` = what the screen tells, with names that no log may hold."""
    if log is not None:
        log.append(message)
    yield message if shown is None else Message(shown, warning=True)


def _fingerprints(cases: Sequence[Case]) -> list[str]:
    """Return the SHA-256 of the names of cases: enough to tell whether they are the same, and nobody's name."""
    return [sha256(case.name.encode()).hexdigest() for case in cases]


def _load(cases: Sequence[Case], spec: ModelSpec, log: RunFolder | None, *, skip: bool) -> Task[list[Slice]]:
    """Read all cases; with `skip`, one that cannot be read is left out with a warning."""
    planes: list[Slice] = []
    for done, case in enumerate(cases, 1):
        try:
            planes += load_slices(case, spec)
        except (FileError, DataError) as error:
            if not skip:
                raise
            text = f"Image {done} of {len(cases)} cannot be used: it is left out."
            yield from _say(log, Message(text, warning=True), shown=f"{error} It is left out.")
        yield Progress(done, len(cases), "images read")
    return planes
