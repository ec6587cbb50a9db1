"""A run that another process works on: it can be watched, stopped and paused from outside, and nothing is lost."""

import json
import math
import subprocess
import sys
import time
from itertools import islice

import pytest

from rskd import cli
from rskd.errors import LeftOffError
from rskd.events import Command, Epoch, Message, Step, to_json
from rskd.following import Tail, follow, pause
from rskd.jobs import ResumeJob
from rskd.runs import Order, RunFolder
from rskd.train import distill, resume
from tests.running import collect

PATIENCE = 240


def watched(task, *, stop_at=None):
    """Follow to the end; returns the events, and the outcome."""
    events, command, until = [], None, time.monotonic() + PATIENCE
    try:
        while time.monotonic() < until:
            event, command = task.send(command), None
            if event is not None:
                events.append(event)
            if isinstance(event, Step) and event.step == stop_at:
                command = Command.STOP
    except StopIteration as end:
        return events, end.value
    raise AssertionError("it never ended")


@pytest.fixture
def long_run(job, tmp_path):
    """A run with no end, in a process of its own."""
    job = job.model_copy(update={"training": job.training.model_copy(update={"epochs": 1000})})
    (tmp_path / "job.json").write_text(job.model_dump_json())
    command = [sys.executable, "-c", "from rskd.cli import main; main()", "run", str(tmp_path / "job.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while not (job.run / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield RunFolder(job.run), process
    process.kill()
    process.wait()


def test_a_finished_run_tells_its_whole_story(job):
    events, outcome = collect(distill(job))
    told, found = watched(follow(RunFolder(job.run)))
    assert [event for event in told if isinstance(event, Step | Epoch)] == [
        event for event in events if isinstance(event, Step | Epoch)
    ]
    assert found.value == outcome.value


def test_a_run_is_watched_and_stopped_while_another_process_works_on_it(long_run):
    folder, process = long_run
    assert folder.busy
    events, outcome = watched(follow(folder), stop_at=6)
    steps = [event.step for event in events if isinstance(event, Step)]
    assert steps == list(range(1, steps[-1] + 1))
    assert outcome.value["stopped"]
    assert outcome.value["student"] == str(folder.best)
    process.wait(PATIENCE)
    assert not folder.busy


def test_a_paused_run_goes_on_where_it_was(long_run):
    folder, process = long_run
    task = follow(folder)
    for event in task:
        if isinstance(event, Step) and event.step >= 5:
            break
    assert pause(folder, patience=PATIENCE)
    with pytest.raises(LeftOffError, match=r"was left off after step \d+ of 4000: it can go on"):
        watched(task)
    assert process.wait(PATIENCE) == 1
    assert "Error: The run was paused, as was asked for" in process.stderr.read()
    left_off = folder.standing().step
    task = resume(ResumeJob(run=folder.path))
    steps = (event.step for event in task if isinstance(event, Step))
    assert list(islice(steps, 2)) == [left_off + 1, left_off + 2]
    task.close()


def test_a_pause_at_the_end_of_a_round_waits_for_the_validation(job):
    """There is no checkpoint of a round that was not validated: left off in between, its last steps would be lost."""
    task = distill(job)
    assert next(event for event in task if isinstance(event, Step) and event.step == 4)
    folder = RunFolder(job.run)
    folder.order(Order.PAUSE)
    with pytest.raises(LeftOffError):
        collect(task)
    assert [event.epoch for event in folder.events() if isinstance(event, Epoch)] == [1]
    goes_on = (event.step for event in resume(ResumeJob(run=job.run)) if isinstance(event, Step))
    assert next(goes_on) == 5


def test_an_order_that_comes_too_late_is_not_for_the_next_process(job):
    collect(distill(job.model_copy(update={"training": job.training.model_copy(update={"epochs": 1})})))
    folder = RunFolder(job.run)
    folder.order(Order.STOP)
    settings = json.loads((job.run / "job.json").read_text())
    settings["training"]["epochs"] = 2
    (job.run / "job.json").write_text(json.dumps(settings))
    _, outcome = collect(resume(ResumeJob(run=job.run)))
    assert not outcome.value["stopped"]
    assert folder.take_order() is None


def test_nonsense_is_no_order(job):
    RunFolder.create(job)
    (job.run / "order").write_text("dance")
    assert RunFolder(job.run).take_order() is None


def test_a_tail_gives_every_event_once_and_waits_for_the_rest_of_a_line(tmp_path):
    log = tmp_path / "events.jsonl"
    tail = Tail(log)
    assert list(tail.events()) == []
    first, second = (json.dumps(to_json(Message(text))) + "\n" for text in ("a", "b"))
    log.write_text(first + second[:9])
    assert [event.text for event in tail.events()] == ["a"]
    assert list(tail.events()) == []
    log.write_text(first + second)
    assert [event.text for event in tail.events()] == ["b"]


def test_a_log_that_was_rewritten_is_told_from_its_beginning(tmp_path):
    log = tmp_path / "events.jsonl"
    tail = Tail(log)
    log.write_text("".join(json.dumps(to_json(Message(text))) + "\n" for text in "abc"))
    assert len(list(tail.events())) == 3
    (tmp_path / "new").write_text(json.dumps(to_json(Message("a"))) + "\n")
    (tmp_path / "new").replace(log)
    assert [event.text for event in tail.events()] == ["a"]


@pytest.mark.parametrize("order", Order)
def test_there_is_nothing_to_order_where_nobody_works(job, capsys, order):
    RunFolder.create(job)
    with pytest.raises(SystemExit):
        cli.main([order, str(job.run)])
    assert f"there is nothing to {order}" in capsys.readouterr().err


@pytest.mark.parametrize("order", Order)
def test_the_command_line_gives_orders(job, order):
    folder = RunFolder.create(job)
    with folder.locked(), pytest.raises(SystemExit, match="0"):
        cli.main([order, str(folder.path)])
    assert folder.take_order() is order


def test_without_masks_there_is_no_dice(tmp_path, job):
    folder = RunFolder.create(job)
    folder.append(Step(8, 8, 2, {}, 1e-3, 0.1))
    folder.append(Epoch(1, 2, {}, math.nan))
    folder.append(Epoch(2, 2, {}, math.nan))
    _, outcome = watched(follow(folder))
    assert math.isnan(outcome.value["dice"])
