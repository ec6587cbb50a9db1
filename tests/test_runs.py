"""Where a run stands, read from its folder alone."""

from pathlib import Path

import pytest

from rskd.config import DataOptions, TrainOptions
from rskd.events import Epoch, Event, Message, Step
from rskd.jobs import TrainJob
from rskd.runs import RunFolder, Standing


def standing(path: Path, *events: Event, patience: int | None = None) -> Standing:
    options = TrainOptions(epochs=3, steps_per_epoch=2, patience=patience)
    job = TrainJob(model="rskd-nano", data=DataOptions(images=path), run=path / "run", training=options)
    folder = RunFolder.create(job)
    for event in events:
        folder.append(event)
    return folder.standing()


def step(number: int) -> Step:
    return Step(number, 6, (number + 1) // 2, {}, 1e-3, 0.1)


def test_a_run_that_was_killed_can_go_on(tmp_path: Path) -> None:
    found = standing(tmp_path, step(1), step(2), Epoch(1, 3, {}, 0.5, best=True), step(3))
    assert found == Standing(step=3, steps=6, dice=0.5, finished=False, stopped=False)


def test_a_run_killed_in_its_last_validation_can_go_on(tmp_path: Path) -> None:
    rounds = [Epoch(1, 3, {}, 0.5, best=True), Epoch(2, 3, {}, 0.4)]
    assert not standing(tmp_path, *rounds, step(6)).finished


@pytest.mark.parametrize(("patience", "finished"), [(1, True), (2, False), (None, False)])
def test_a_run_without_patience_is_finished_before_its_steps_are(
    tmp_path: Path, patience: int | None, finished: bool
) -> None:
    rounds = [Epoch(1, 3, {}, 0.5, best=True), Epoch(2, 3, {}, 0.4)]
    assert standing(tmp_path, *rounds, step(4), patience=patience).finished is finished


def test_a_stop_on_purpose_is_told_from_an_interruption(tmp_path: Path) -> None:
    stop = Message("Stopped after step 3 of 6: resume the run to go on.")
    assert standing(tmp_path / "a", step(3), stop).stopped
    assert not standing(tmp_path / "b", step(3), stop, step(4)).stopped


def test_nothing_has_happened_in_a_new_run(tmp_path: Path) -> None:
    assert standing(tmp_path) == Standing(step=0, steps=6, dice=None, finished=False, stopped=False)
