"""Whether the teacher's answers are kept on disk: where the views are fixed, where it pays, and where they fit."""

from __future__ import annotations

import shutil
from hashlib import sha256

from lightning_fabric import Fabric

from rskd.config import CacheOptions
from rskd.data import PatchSampler
from rskd.distillation.cache import TeacherCache, cache_size, fits_half, open_cache
from rskd.distillation.features import Features
from rskd.distillation.objective import Objective
from rskd.errors import ModelError, ResourceError, RskdError
from rskd.events import Message, Task
from rskd.jobs import DistillJob
from rskd.runs import RunFolder
from rskd.training.launch import local_processes


def keep_answers(
    objective: Objective, sampler: PatchSampler, job: DistillJob, folder: RunFolder, fabric: Fabric, *, teacher: str
) -> Task[None]:
    """Give the objective a cache of the teacher's answers, if the job wants one and there is room for it.

    Parameters
    ----------
    objective, sampler, job, folder, fabric
        Of the run.
    teacher
        SHA-256 of the teacher's file.

    Yields
    ------
    Message
        Whether they are kept, and why not.
    Progress
        While those of an earlier life of the run are checked.

    Raises
    ------
    RskdError
        If they cannot be kept although the job insists on it.
    """
    options = job.distillation.cache
    if options.use == "off" or sampler.views is None or not (options.use == "on" or _pays(job, sampler.views)):
        return
    image, _, _ = sampler.view(0)
    with fabric.autocast():
        example = objective.ask(image[None].to(fabric.device))
    cache = None
    if fabric.is_global_zero:
        question = (objective.question(), job.training.precision, teacher, sampler.digest())
        key = sha256(repr(question).encode()).hexdigest()
        cache = yield from _open(folder, options, views=sampler.views, example=example, key=key, fabric=fabric)
    if fabric.broadcast(cache is not None):
        objective.cache = cache or TeacherCache(folder.cache, views=sampler.views, example=example)


def _pays(job: DistillJob, views: int) -> bool:
    """Return whether any view is met twice."""
    training = job.training
    return training.epochs * training.steps_per_epoch * training.batch_size > views


def _open(
    folder: RunFolder, options: CacheOptions, *, views: int, example: Features, key: str, fabric: Fabric
) -> Task[TeacherCache | None]:
    """Open the cache; without room for it, return None after a sentence, or raise if the job insists."""
    size = cache_size(example, views)
    try:
        _check(folder, options, views=views, example=example, fabric=fabric)
        cache = yield from open_cache(folder.cache, views=views, example=example, key=key)
    except RskdError as error:
        if options.use == "on":
            raise
        yield Message(f"{error} The teacher is asked in every step instead.", warning=True)
        return None
    yield Message(f"The teacher's answers on {views} views are kept on disk ({size / 1e9:.2f} GB, half precision).")
    return cache


def _check(folder: RunFolder, options: CacheOptions, *, views: int, example: Features, fabric: Fabric) -> None:
    """Make sure that the answers can be kept.

    Raises
    ------
    ModelError
        If half precision cannot hold them.
    ResourceError
        If they are too large, or several computers would have to share them.
    """
    size, allowed = cache_size(example, views), options.gigabytes * 1e9
    need = f"The teacher's answers on {views} views need {size / 1e9:.2f} GB on disk"
    if fabric.world_size > local_processes():
        raise ResourceError("The teacher's answers cannot be shared by several computers: set the cache to off.")
    if not fits_half(example):
        raise ModelError("Half precision cannot hold the teacher's answers: set the cache to off.")
    if size > allowed:
        raise ResourceError(
            f"{need}, {options.gigabytes:g} GB are allowed: allow more, or use at most {int(views * allowed / size)} "
            "views."
        )
    free = shutil.disk_usage(folder.path).free
    if size > free and not folder.cache.exists():  # an earlier life of the run has reserved its room
        raise ResourceError(f"{need}, where {free / 1e9:.2f} GB are free: make room, or use fewer views.")
