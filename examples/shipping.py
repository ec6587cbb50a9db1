"""What the examples that train a pair of networks have in common: run to the end, measure once, write the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import Progress as Bar

from rskd.evaluate import evaluate
from rskd.events import Epoch, Message, Step, Task
from rskd.jobs import DistillJob, EvaluateJob, Outcome, ResumeJob, TrainJob
from rskd.models import weights
from rskd.runs import RunFolder
from rskd.train import distill, resume, train


def finish(job: TrainJob | DistillJob) -> Path:
    """Run a training to its end, from wherever it is, and return its best network."""
    if (job.run / "job.json").exists():
        show(resume(ResumeJob(run=job.run)))
    elif isinstance(job, TrainJob):
        show(train(job))
    else:
        show(distill(job))
    return RunFolder(job.run).best


def show(task: Task[Outcome]) -> Outcome:
    """Run a task to its end, with a bar."""
    with Bar() as bar:
        row = bar.add_task("steps")
        while True:
            try:
                event = next(task)
            except StopIteration as end:
                return end.value
            if isinstance(event, Step):
                bar.update(row, completed=event.step, total=event.steps)
            elif isinstance(event, Epoch):
                bar.console.print(f"epoch {event.epoch}: validation Dice {event.dice:.4f} {'(best)' * event.best}")
            elif isinstance(event, Message):
                bar.console.print(event.text)


def ship(best: Path, test: EvaluateJob, facts: Mapping[str, str], **description: Any) -> Mapping[str, Any]:
    """Write a network in half precision, measure that file on the test images, and put the result on its card.

    Parameters
    ----------
    best
        The trained network.
    test
        Its model is the file to write.
    facts
        For the card: data, licence.
    description
        Fields of its description that are better said than in training.

    Returns
    -------
    Mapping
        The scores, as `rskd evaluate` prints them.
    """
    model, card = weights.load(best), weights.inspect(best).card
    model.spec = model.spec.model_copy(update=description)
    weights.save(test.model, model, card=card | dict(facts), half=True)
    scores = show(evaluate(test)).value
    dice, iou = (", ".join(f"{name} {value:.4f}" for name, value in scores[kind].items()) for kind in ("dice", "iou"))
    where = f"mean of {len(scores['cases'])} test images" + ", inside the region" * (test.data.regions is not None)
    measured = {"test Dice": f"{dice}; {where}", "test IoU": f"{iou}; {where}"}
    weights.save(test.model, model, card=card | dict(facts) | measured, half=True)
    print(f"{test.model.name}: test Dice {dice}")
    return scores
