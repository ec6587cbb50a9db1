"""A small run from its beginning to its report; what the report says, shows and must not say."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rskd.cases import case_id, find_cases, split_cases
from rskd.config import DataOptions, TrainOptions
from rskd.errors import FileError
from rskd.evaluate import evaluate
from rskd.events import Command, Message, Step, Task, drain
from rskd.jobs import DistillJob, EvaluateJob, Outcome, ReportJob, ResumeJob, TrainJob
from rskd.phantom import write_phantoms
from rskd.records import NETWORKS, read_json, read_lines
from rskd.report import report
from rskd.report.story import Story
from rskd.report.words import summary
from rskd.runs import RunFolder
from rskd.train import distill, resume, train

NAME = "Zyxwerth"
TINY = TrainOptions(epochs=2, steps_per_epoch=3, batch_size=2, patch=32, report=False)


class Page(HTMLParser):
    """Collects what is checked of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            values = dict(attrs)
            assert (values["src"] or "").startswith("data:image/")
            self.images.append(values["alt"] or "")
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distillation of pictures whose file names are a patient's."""
    root = tmp_path_factory.mktemp("report")
    write_phantoms(root / "data", count=6, size=48, seed=2)
    for folder in ("images", "masks"):
        for path in (root / "data" / folder).iterdir():
            path.rename(path.with_name(f"{NAME}{path.stem[-3:]}.png"))
    data = DataOptions(images=root / "data" / "images", masks=root / "data" / "masks", validation_share=0.5)
    teacher = TrainJob(model="rskd-nano", data=data, run=root / "teacher", classes=("vessel",), training=TINY)
    drain(train(teacher))
    training = TINY.model_copy(update={"report": True})
    best = RunFolder(teacher.run).best
    drain(distill(DistillJob(teacher=best, student="rskd-nano", data=data, run=root / "run", training=training)))
    return root / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def collect(task: Task[Outcome], stop_at: int | None = None) -> tuple[list[str], Outcome]:
    """Run a task, or stop it at a step; returns the messages and the outcome."""
    said, command = [], None
    while True:
        try:
            event = task.send(command)
        except StopIteration as end:
            return said, end.value
        said += [event.text] if isinstance(event, Message) else []
        command = Command.STOP if isinstance(event, Step) and event.step == stop_at else None


def cases(run: Path) -> tuple[list[str], list[str]]:
    job = RunFolder(run).job()
    training, validation = split_cases(find_cases(job.data), job.data, job.training.seed)
    return [case_id(case) for case in training], [case_id(case) for case in validation]


def test_the_folder_tells_everything(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {"job.json", "environment.json", "data.json", "networks.json", "events.jsonl", "metrics.jsonl"}
    assert names >= {"last.ckpt", "best.safetensors", "report.html", "validation.json", "objective.json"}
    training, validation = cases(run)
    data = read_json(run / "data.json")
    assert data is not None
    assert [row["case"] for row in data["cases"]] == training + validation
    assert [row["side"] for row in data["cases"]] == ["training"] * 3 + ["validation"] * 3
    assert data["cases"][0]["pixels"]["vessel"] > 0
    metrics = read_lines(run / "metrics.jsonl")
    assert [(line["epoch"], line["case"]) for line in metrics] == [(e, case) for e in (1, 2) for case in validation]
    networks = read_json(run / "networks.json")
    assert networks is not None
    assert networks["teacher"]["parameters"] == networks["student"]["parameters"] > 1e5


def test_the_metrics_of_an_epoch_are_its_dice(run: Path) -> None:
    events = [event for event in RunFolder(run).events() if event.kind == "epoch"]
    for epoch in events:
        scores = [line["dice"]["vessel"] for line in read_lines(run / "metrics.jsonl") if line["epoch"] == epoch.epoch]
        assert sum(scores) / len(scores) == pytest.approx(epoch.dice)


def test_no_name_and_no_place_but_in_the_job(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "job.json":
            content = path.read_bytes()
            assert NAME.encode() not in content, path.name
            assert str(run.parent).encode() not in content, path.name


def test_the_page_is_whole_and_needs_nothing_from_outside(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)
    assert re.findall(r"https?://", text) == []
    assert "@import" not in text
    assert 'lang="en"' in text
    described = [alt for alt in page.images if alt]
    assert len(described) >= 3 * 5 + 2
    assert sum("where segmentation and mask differ" in alt for alt in described) == 3
    assert "Not for diagnosis" in text


def test_the_scores_are_those_of_evaluate(run: Path) -> None:
    job = RunFolder(run).job()
    value = drain(evaluate(EvaluateJob(model=run / "best.safetensors", data=job.data, scores={"surface": True}))).value
    expected = {row["case"]: row for row in value["cases"] if row["case"] in cases(run)[1]}
    saved = read_json(run / "validation.json")
    assert saved is not None
    assert {row["case"]: row for row in saved["tables"]["student"]["cases"]} == expected


def test_the_worst_image_comes_first(run: Path) -> None:
    saved = read_json(run / "validation.json")
    assert saved is not None
    scores = {row["case"]: row["dice"]["vessel"] for row in saved["tables"]["student"]["cases"]}
    order = sorted(scores, key=scores.__getitem__)
    text = (run / "report.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h3>(\w+) image: (\w+)</h3>", text)
    assert headings == [("Worst", order[0]), ("Median", order[1]), ("Best", order[2])]
    listed = re.findall(r'rowspan="1"><code>(\w+)</code>', text)
    assert listed == order


def test_from_the_folder_alone(copy: Path, tmp_path: Path) -> None:
    """Data and teacher are gone: what an earlier report has measured is still told, and a sentence says the rest."""
    job = json.loads((copy / "job.json").read_text())
    job["data"]["images"] = str(tmp_path / "gone")
    (copy / "job.json").write_text(json.dumps(job))
    before = (copy / "report.html").read_text(encoding="utf-8")
    said, outcome = collect(report(ReportJob(run=copy)))
    assert said[0].startswith("The report is without pictures.")
    text = Path(outcome.value["report"]).read_text(encoding="utf-8")
    assert "could not be read, so there are no pictures" in text
    assert "<h3>" not in text
    first = re.compile(r"reaches a Dice of <strong>[\d.]+</strong>")
    assert first.findall(text) == first.findall(before) != []
    (copy / "validation.json").unlink()
    (copy / "data.json").write_text("{")
    drain(report(ReportJob(run=copy, pictures=False, output=tmp_path / "other.html")))
    assert "Best round" in (tmp_path / "other.html").read_text(encoding="utf-8")


def test_sizes_are_told_as_they_are(copy: Path) -> None:
    equal = " ".join(summary(Story.read(RunFolder(copy)), {}, {}))
    assert "the student reaches" in equal
    assert "just as many." in equal
    assert not re.search("small|large", equal)
    path = copy / NETWORKS
    networks = read_json(path)
    networks["teacher"]["parameters"] *= 4
    path.write_text(json.dumps(networks))
    smaller = " ".join(summary(Story.read(RunFolder(copy)), {}, {}))
    assert "the small network (the student) reaches" in smaller
    assert "4.0 times as many." in smaller


def test_a_run_that_has_hardly_begun(copy: Path) -> None:
    for name in ("events.jsonl", "metrics.jsonl", "best.safetensors", "validation.json", "environment.json"):
        (copy / name).unlink()
    drain(report(ReportJob(run=copy)))
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert "not finished: 0 of 2 rounds" in text
    assert "There has been no validation yet" in text


def test_a_report_that_fails_is_a_warning(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rskd.report import task as writing

    def broken(content: object) -> str:
        raise ValueError("a bug")

    monkeypatch.setattr(writing, "page", broken)
    job = RunFolder(run).job().model_copy(update={"run": tmp_path / "run"})
    said, outcome = collect(distill(job))
    assert not outcome.value["stopped"]
    assert said[-1].startswith("The report could not be written")


def test_a_stopped_run_has_a_report_at_once(run: Path, tmp_path: Path) -> None:
    job = RunFolder(run).job().model_copy(update={"run": tmp_path / "run"})
    collect(distill(job), stop_at=4)
    text = (job.run / "report.html").read_text(encoding="utf-8")
    assert "not finished: 1 of 2 rounds" in text
    assert "<h3>" not in text
    drain(resume(ResumeJob(run=job.run)))
    text = (job.run / "report.html").read_text(encoding="utf-8")
    assert "taken up again 1 time" in text
    assert text.count("<h3>") == 3


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is no run folder"):
        drain(report(ReportJob(run=tmp_path)))
