"""The command line: the same jobs with the same parameters as in the window, run in this process."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import BaseModel, ValidationError

from rskd.engine.failures import explain
from rskd.engine.logs import new_log
from rskd.errors import EngineError, FileError, ParameterError
from rskd.events import Command, Epoch, Event, Message, Progress, Reference, Step, Task
from rskd.flags import COMMANDS, leaves_of
from rskd.jobs import (
    JOB,
    BenchJob,
    ContourletJob,
    DenoiseJob,
    Job,
    Outcome,
    RankJob,
    SegmentJob,
)
from rskd.runs import Order, RunFolder

if TYPE_CHECKING:
    from rskd.steps import Recipe

T = TypeVar("T")
STOPPABLE = frozenset({"train", "distill", "resume", "batch"})
"""Jobs that have something to keep when they are stopped early."""
INTERRUPTED = 130
Debug = Annotated[
    bool,
    Parameter(name="--debug", negative="", help="Show where an error came from.", group=Group("Program", sort_key=9)),
]


def main(line: str | Sequence[str] | None = None) -> None:
    """Run a command line, and exit with 0, 1 after an error, or 130 after Ctrl-C.

    Parameters
    ----------
    line
        What follows the name of the program; None = the command line of this process.
    """
    try:
        build_app()(line, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        cause = error.__cause__
        text = str(error).partition(" 1 validation error")[0]
        if isinstance(cause, ValidationError):
            text += f" {cause.errors()[0]['msg'].removeprefix('Value error, ')}."
        _fail(ParameterError(text), "", debug=False)


def build_app() -> App:
    """Return the command line: one command per kind of job, with a flag per field of the job."""
    app = App(
        name="rskd",
        help="Knowledge distillation for medical image segmentation.",
        help_format="plaintext",
        version=_version,
        default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
    )
    for name, job_type in COMMANDS.items():
        app.command(_command(job_type), name=name)
    app.command(run_file, name="run")
    app.command(stop)
    app.command(pause)
    app.command(doctor)
    return app


def run_file(job: str, /, *, output: Path | None = None, debug: Debug = False) -> None:
    """Run a job that was saved as JSON, or all jobs of a recipe that was saved in the window.

    Parameters
    ----------
    job
        JSON file, or the JSON itself.
    output
        Folder for what comes out: for every step a folder with its arrays as npy and its facts as JSON.
    """
    from rskd.steps import read_recipe

    with _sentences("", debug=debug):
        if job.lstrip().startswith("{"):
            recipe = read_recipe(job, name="The text", folder=Path())
        else:
            recipe = read_recipe(_read(Path(job)), name=Path(job).name, folder=Path(job).absolute().parent)
    if len(recipe.steps) == 1 and not recipe.steps[0].arrays and output is None:
        _perform(recipe.steps[0].job, debug=debug)
    else:
        _repeat(recipe, output, debug=debug)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}.") from error


def stop(run: Path, /, *, debug: Debug = False) -> None:
    """Ask a run that is on its way in another process to finish its step and keep the best student so far.

    Parameters
    ----------
    run
        Run folder.
    """
    _order(run, Order.STOP, debug=debug)


def pause(run: Path, /, *, debug: Debug = False) -> None:
    """Ask a run that is on its way in another process to write down where it is and leave off.

    At the end of a round it is heard after the validation; a run of several processes stops instead, with the best so
    far.

    Parameters
    ----------
    run
        Run folder.
    """
    _order(run, Order.PAUSE, debug=debug)


def _order(run: Path, order: Order, *, debug: bool) -> None:
    with _sentences("", debug=debug):
        folder = RunFolder(run)
        if not folder.busy:
            raise ParameterError(f"No process is at work on {run}: there is nothing to {order}.")
        folder.order(order)


def doctor(*, output: Path | None = None, setting: tuple[str, ...] = ()) -> None:
    """Show versions, devices, networks and folders, and try whether everything works.

    Parameters
    ----------
    output
        Text file for whoever is to help: the same, and where errors came from lately. No image, and no name of a file,
        a person or this computer gets into it.
    setting
        What is set elsewhere and shall be in the file as well, such as "device=cpu".
    """
    from rskd.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        mark = "ok  " if finding.good else "FAIL"
        print(f"{mark}  {finding.name:<22} {finding.text}", flush=True)
    if output is not None:
        from rskd.diagnosis import write_diagnosis

        with _sentences("", debug=False):
            write_diagnosis(output, findings, setting)
        print(f"Written to {output}: read it before you pass it on.")
    sys.exit(0 if all(finding.good for finding in findings) else 1)


# ----------------------------------------------------------------------------------------------- jobs as command lines


def _command(job_type: type[BaseModel]) -> Callable[..., None]:
    """Return a command with a flag for every field of `job_type`, in whatever group it is."""

    def command(*inputs: Any, debug: bool = False, **fields: Any) -> None:
        given: dict[str, Any] = {"kind": kind}
        for name, value in (dict(zip(positional, inputs, strict=False)) | fields).items():
            *groups, leaf = leaves[name].path
            place = given
            for group in groups:
                place = place.setdefault(group, {})
            place[leaf] = value
        with _sentences(kind, debug=debug):
            job = JOB.validate_python(given)
        _perform(job, debug=debug)

    kind = job_type.model_fields["kind"].default
    leaves = {"__".join(leaf.path): leaf for leaf in leaves_of(job_type)}
    parameters = [leaf.parameter(name) for name, leaf in leaves.items()]
    parameters.sort(key=lambda parameter: (parameter.kind, parameter.default is not inspect.Parameter.empty))
    positional = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    parameters.append(inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = (job_type.__doc__ or "").split("\n")[0]
    return command


# -------------------------------------------------------------------------------------------------- running and showing


def _perform(job: Job, *, debug: bool) -> None:
    """Run a job with a progress bar and print what came out."""
    with _sentences(job.kind, debug=debug):
        from rskd.run import run

        with _Screen() as screen, _interrupts(job.kind in STOPPABLE, screen.say) as stop_asked:
            outcome = _drive(run(job), screen.show, stop_asked)
        if _speaks():
            _report(job, outcome)


def _repeat(recipe: Recipe, output: Path | None, *, debug: bool) -> None:
    """Run the jobs of a recipe and print what each of them found."""
    with _sentences("", debug=debug):
        from rskd.replay import replay

        stoppable = any(step.job.kind in STOPPABLE for step in recipe.steps)
        with _Screen() as screen, _interrupts(stoppable, screen.say) as stop_asked:
            outcomes = _drive(replay(recipe, output=output), screen.show, stop_asked)
        if _speaks():
            print(json.dumps([outcome.value for outcome in outcomes], indent=2))
            if output is None and any(outcome.arrays for outcome in outcomes):
                print("The arrays were not kept: name a folder with --output.", file=sys.stderr)


def _speaks() -> bool:
    """Return whether this process is the one that prints: under torchrun there are several."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"


def _drive(task: Task[T], show: Callable[[Event], None], stop_asked: Callable[[], bool]) -> T:
    """Run a task to its end; it is closed if anything interrupts it."""
    command: Command | None = None
    try:
        while True:
            show(task.send(command))
            command = Command.STOP if stop_asked() else None
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        task.close()


@contextmanager
def _interrupts(stoppable: bool, say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM ask for a clean stop where that keeps something; the next one aborts."""
    asked: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if not stoppable or asked:
            raise KeyboardInterrupt
        asked.append(number)
        again = "; press Ctrl-C again to abort" if number == signal.SIGINT else ", because the system asks for it"
        say(f"Stopping after this step and keeping the best{again}.")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _sentences(kind: str, *, debug: bool) -> Iterator[None]:
    """Turn every error into one sentence and exit status 1; the traceback goes to a log file."""
    try:
        yield
    except KeyboardInterrupt:
        print("Aborted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        _fail(error, kind, debug=debug)


def _fail(error: Exception, kind: str, *, debug: bool) -> NoReturn:
    told = explain(error, kind=kind)
    if debug:
        traceback.print_exception(error)
    message = f"Error: {told}"
    if isinstance(told, EngineError) and not debug:
        log = new_log("rskd")
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        message += f" Details are in {log}."
    print(message, file=sys.stderr)
    sys.exit(1)


class _Screen:
    """A progress bar on standard error, with a line above it for every epoch and message."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._console = Console(stderr=True, highlight=False, quiet=not _speaks())
        self._bars = Bars(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bars.add_task("Starting", total=None)

    def __enter__(self) -> _Screen:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    def show(self, event: Event) -> None:
        """Show what happened."""
        match event:
            case Message(text=text, warning=warning):
                self.say(f"Warning: {text}" if warning else text)
            case Progress(done=done, total=total, what=what):
                self._bars.update(self._task, completed=done, total=total, description=what.capitalize())
            case Step(step=step, steps=steps, losses=losses):
                total_loss = losses.get("total", float("nan"))
                self._bars.update(self._task, completed=step, total=steps, description=f"Step, loss {total_loss:.4f}")
            case Reference(name=name, dice=dice):
                self.say(f"Before the first step the {name} has a Dice of {dice:.4f} on the validation images.")
            case Epoch():
                best = ", the best so far" if event.best else ""
                terms = "  ".join(f"{name} {value:.4f}" for name, value in event.losses.items())
                self.say(f"Epoch {event.epoch} of {event.epochs}: Dice {event.dice:.4f}{best}; {terms}")


def _report(job: Job, outcome: Outcome) -> None:
    """Print the facts on standard output, as JSON for people and for programs; those of a bench as a table."""
    if isinstance(job, BenchJob):
        from rskd.bench_words import table

        print(table(outcome.value))
        return
    print(json.dumps(outcome.value, indent=2))
    if isinstance(job, SegmentJob | RankJob | ContourletJob | DenoiseJob) and job.output is None:
        print("Nothing was written: name a place with --output.", file=sys.stderr)


def _version() -> str:
    from importlib.metadata import version

    return version("napari-rskd")
