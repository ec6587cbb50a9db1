"""A folder of everything, some of it broken: once, again, changed, stopped."""

import csv
import importlib.util
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rskd import batch as batch_module
from rskd.batch import batch, recipe_of, segment_item
from rskd.errors import FileError, ParameterError
from rskd.events import Command, Message, Progress, drain
from rskd.folder import find_items
from rskd.io import read_labels, read_scan, write_image
from rskd.jobs import BatchJob
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.networks import Networks
from rskd.scan import Scan

_spec = importlib.util.spec_from_file_location("_dicom_files", Path(__file__).parent / "io" / "test_dicom.py")
assert _spec
assert _spec.loader
dicom_files: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(dicom_files)

PATIENT = "Zyxwerth"
ENDINGS = (".nii.gz", ".nii", ".png", ".tif", ".nrrd", ".mha", ".npy", ".ome.tif", ".zarr")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = fresh_spec("rskd-nano", in_channels=1, classes=["organ"]).model_copy(update={"image_size": 32})
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Segmenter(spec).eval()
        with torch.no_grad():  # both classes shall occur
            background, organ = model(torch.randn(1, 1, 32, 32))[0]
            head = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
            head.bias[1] -= (organ - background).median()
        weights.save(path, model, card={})
    return path


def write_one(path: Path, seed: int) -> None:
    data = np.random.default_rng(seed).integers(0, 255, (2, 20, 24)).astype(np.uint8)
    if path.name.endswith((".png", ".tif", ".npy")):
        write_image(path, Scan(data[0], "yx"))
    else:
        write_image(path, Scan(data, "zyx", spacing=(5.0, 0.5, 0.5), units="mm"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """50 images in folders: 42 files, 3 DICOM series, and 5 that are broken."""
    root = tmp_path / "in"
    for index in range(42):
        write_one(root / f"site{index % 3}" / f"{PATIENT}.{index}{ENDINGS[index % len(ENDINGS)]}", index)
    for index in range(3):
        (root / "dicom" / f"{PATIENT}{index}").mkdir(parents=True)
        dicom_files.series(root / "dicom" / f"{PATIENT}{index}")
    broken = root / f"{PATIENT} broken"
    broken.mkdir()
    (broken / f"{PATIENT}-empty.tif").write_bytes(b"")
    (broken / f"{PATIENT}-text.png").write_text("no picture")
    whole = (root / "site0" / f"{PATIENT}.0.nii.gz").read_bytes()
    (broken / f"{PATIENT}-cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    write_image(broken / f"{PATIENT}-colours.npy", Scan(np.zeros((8, 8, 3), np.uint8), "yxc"))
    dicom_files.series(broken / f"{PATIENT}-series")
    first = next((broken / f"{PATIENT}-series").iterdir())
    first.write_bytes(first.read_bytes()[:-40])
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_text("")
    return root


def collect(job: BatchJob) -> tuple[list[Any], dict[str, Any]]:
    """Run a batch; returns its events and the facts."""
    events, task = [], batch(job)
    while True:
        try:
            events.append(next(task))
        except StopIteration as end:
            return events, dict(end.value.value)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, int]:
    """Times of all results, without the tables."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in found}


def test_fifty_files_of_which_five_are_broken(folder: Path, network: Path, tmp_path: Path) -> None:
    job = BatchJob(model=network, images=folder, output=tmp_path / "out")
    events, value = collect(job)
    assert value == {
        "images": 50, "done": 45, "skipped": 0, "failed": 5, "stopped": False, "output": str(job.output)
    }  # fmt: skip
    json.dumps(value)
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1] == Progress(50, 50, "images")
    assert [p.done for p in progress] == sorted(p.done for p in progress)

    files = rows(job.output / "files.csv")
    assert len(files) == 50
    labelled = {row["file"]: row["labels"] for row in files if row["labels"]}
    assert len(labelled) == 45
    for name, labels in labelled.items():
        image, found = read_scan(folder / name), read_labels(job.output / labels)
        assert found.data.shape == image.data.shape
        assert Path(labels).parent == Path(name).parent
        if name.endswith(tuple(e for e in ENDINGS if e != ".ome.tif")):
            assert labels == name
        if image.affine is not None:
            np.testing.assert_allclose(found.affine, image.affine, atol=1e-6)
    assert {Path(labels).suffix for name, labels in labelled.items() if name.startswith("dicom")} == {".dcm"}

    failures = rows(job.output / "failures.csv")
    assert len(failures) == 5
    for row in failures:
        assert row["reason"].endswith(".")
        assert len(row["reason"].splitlines()) == 1
    told = " ".join(event.text for event in events if isinstance(event, Message))
    for words in ("empty", "channels", "EOFError", "unknown kind", "damaged"):
        assert words in told

    measured = rows(job.output / "measurements.csv")
    assert len(measured) == 45
    assert {row["unit"] for row in measured} == {"ml", "pixels"}
    assert {row["class"] for row in measured} == {"organ"}
    for table in ("measurements.csv", "failures.csv"):
        assert PATIENT not in (job.output / table).read_text()
    assert PATIENT not in told

    before = contents(job.output)
    tables = {path.name: path.read_text() for path in job.output.glob("*.csv")}
    again = drain(batch(job)).value
    assert (again["done"], again["skipped"], again["failed"]) == (0, 45, 5)
    assert contents(job.output) == before
    assert {path.name: path.read_text() for path in job.output.glob("*.csv")} == tables


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three pictures, one of them a TIFF."""
    root = tmp_path / "in"
    for seed, name in enumerate(("a.png", "b.png", "c/d.tif")):
        write_one(root / name, seed)
    return root


def test_what_has_changed_is_done_again(small: Path, network: Path, tmp_path: Path) -> None:
    job = BatchJob(model=network, images=small, output=tmp_path / "out")
    drain(batch(job))
    write_one(small / "a.png", 9)
    (job.output / "c" / "d.tif").unlink()
    assert drain(batch(job)).value["done"] == 2
    assert drain(batch(job)).value["done"] == 0

    other = job.model_copy(update={"tta": "flips"})
    events, value = collect(other)
    assert value["done"] == 3
    assert "3 results were made with another recipe" in events[0].text
    elsewhere = job.model_copy(update={"compute": job.compute.model_copy(update={"threads": 1})})
    assert recipe_of(elsewhere) == recipe_of(job) != recipe_of(other)
    faster = job.model_copy(update={"options": job.options.model_copy(update={"batch_size": 1})})
    assert recipe_of(faster) == recipe_of(job)


def test_another_version_of_the_program_is_another_recipe(small: Path, network: Path, monkeypatch: Any) -> None:
    job = BatchJob(model=network, images=small, output=small / "out")
    before = recipe_of(job)
    monkeypatch.setattr(batch_module, "version", lambda _: "later")
    assert recipe_of(job) != before


def test_what_a_failed_run_has_overwritten_is_done_again(small: Path, network: Path, tmp_path: Path) -> None:
    job = BatchJob(model=network, images=small, output=tmp_path / "out")
    total = drain(batch(job)).value["done"]
    (job.output / "a_entropy.tif").mkdir()
    (job.output / "a_entropy.tif" / "in the way").touch()
    drain(batch(job.model_copy(update={"uncertainty": ("entropy",), "tta": "flips"})))
    again = drain(batch(job)).value["done"]
    assert again == total, "labels of another recipe were taken for done"


def test_a_stop_keeps_what_is_done_and_the_next_run_goes_on(small: Path, network: Path, tmp_path: Path) -> None:
    job = BatchJob(model=network, images=small, output=tmp_path / "out")
    task = batch(job)
    while next(task) != Progress(1, 3, "images"):
        pass
    next(task)  # the next image has begun
    with pytest.raises(StopIteration) as end:
        task.send(Command.STOP)
    value = end.value.value.value
    assert value["stopped"]
    assert value["done"] == 1
    rest = drain(batch(job)).value
    assert (rest["done"], rest["skipped"]) == (2, 1)


def test_a_kill_leaves_nothing_half_done(small: Path, network: Path, tmp_path: Path, monkeypatch: Any) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    job = BatchJob(model=network, images=small, output=tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(batch_module, "write_atomically", die)  # labels are written, their record is not
        with pytest.raises(Killed):
            drain(batch(job))
    assert (job.output / "a.png").is_file()
    assert drain(batch(job)).value["done"] == 3
    assert not [path for path in job.output.rglob("*") if "partial" in path.name]


def test_one_image_in_another_process(small: Path, network: Path, tmp_path: Path) -> None:
    job = BatchJob(model=network, images=small, output=tmp_path / "out")
    (item, *_) = find_items(small)
    sent = pickle.loads(pickle.dumps((job, item, recipe_of(job))))
    record = pickle.loads(pickle.dumps(drain(segment_item(*sent, Networks()))))
    assert record.outputs == ("a.png",)
    assert drain(batch(job)).value["skipped"] == 1


def test_everything_that_a_job_can_ask_for(small: Path, network: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.safetensors"
    model = weights.load(network)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    weights.save(second, model, card={})
    job = BatchJob(
        model=network,
        images=small,
        output=tmp_path / "out",
        pattern="*.png",
        format="nrrd",
        uncertainty=("entropy", "margin"),
        compare_with=second,
        options={"probabilities": True},
        clean_up={"keep_largest": ("organ",), "min_size": {"all": 2}},
    )
    events, value = collect(job)
    assert (value["images"], value["done"]) == (2, 2)
    told = [event.text for event in events if isinstance(event, Message)]
    cases = [row["case"] for row in rows(job.output / "files.csv")]
    counted = "The image does not state the size of its voxels: min_size counts voxels."
    assert told == [f"Image {case}: {counted}" for case in cases]
    names = {path.name for path in job.output.iterdir()}
    kinds = ("probabilities", "entropy", "margin", "disagreement", "divergence")
    assert {f"a_{kind}.nrrd" for kind in kinds} | {"a.nrrd"} <= names
    assert rows(job.output / "measurements.csv")[0]["components"] == "1"
    entropy, margin = (read_scan(job.output / f"a_{kind}.nrrd").data for kind in ("entropy", "margin"))
    assert 0 <= entropy.min() < entropy.max() <= 1
    assert np.corrcoef(entropy.ravel(), margin.ravel())[0, 1] < -0.5


def test_names(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("same.png", "same.tif", "scan.1.nii.gz", "image.ome.tif"):
        write_one(root / name, 0)
    write_one(root / "stack.zarr", 0)
    dicom_files.series(root / "mixed")
    dicom_files.series(
        root / "mixed",
        change=lambda dataset, index: setattr(dataset, "SeriesInstanceUID", f"1.2.{index % 2}"),
    )
    (root / "out").mkdir()
    write_one(root / "out" / "old.png", 0)
    targets = [item.target for item in find_items(root, without=root / "out")]
    assert targets == ["image", "mixed/0", "mixed/1", "same.png", "same.tif", "scan.1", "stack"]
    shutil.rmtree(root / "mixed")
    assert [item.target for item in find_items(dicom_files.series(tmp_path / "series"))] == ["series"]
    assert [item.name for item in find_items(root, pattern="*.gz")] == ["scan.1.nii.gz"]


def test_the_originals_are_never_replaced(small: Path, network: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    (tmp_path / "link").symlink_to(small)
    for images, output in ((small, small), (small, tmp_path / "link"), (small, tmp_path), (small, small / "c")):
        with pytest.raises(ParameterError, match="holds images that are no results: choose an empty folder"):
            drain(batch(BatchJob(model=network, images=images, output=output)))
    assert {name: time for name, time in contents(tmp_path).items() if not name.startswith("link")} == before
    inside = BatchJob(model=network, images=small, output=small / "results")
    assert [drain(batch(inside)).value["done"] for _ in range(2)] == [3, 0]
    write_one(small / "results.png", 5)
    assert drain(batch(inside)).value["done"] == 1
    item = find_items(small, without=inside.output)[0]
    record = drain(segment_item(inside.model_copy(update={"output": small}), item, "", Networks()))
    assert "is the image itself" in record.error


def test_no_name_is_told(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "in" / PATIENT
    root.mkdir(parents=True)
    dicom_files.series(root / f"{PATIENT}1", change=lambda head, _: head.__delattr__("FrameOfReferenceUID"))

    def of_two_series(head: Any, index: int) -> None:
        head.SeriesInstanceUID, head.Rows = f"1.2.{index % 2}", head.Rows - (index == 0)

    dicom_files.series(root / f"{PATIENT} 2", change=of_two_series)
    write_one(root / f"{PATIENT}.png", 0)
    job = BatchJob(model=network, images=root, output=tmp_path / "out")
    events, _ = collect(job)
    told = " ".join(event.text for event in events if isinstance(event, Message))
    assert re.search(r"image (\w{12}), NIfTI is written: \1\.dcm: the DICOM images state no frame of reference", told)
    assert "different sizes" in told
    assert PATIENT not in told

    def refuse(_: object) -> str:
        raise PermissionError

    monkeypatch.setattr(batch_module, "_case", refuse)
    item = next(item for item in find_items(root) if item.name.endswith(".png"))
    first, second = (drain(segment_item(job, item, "", Networks())) for _ in range(2))
    assert first.error
    assert first.case != second.case  # nobody can try out which name it stands for


def test_results_that_cannot_be_written_are_not_named(tmp_path: Path) -> None:
    item = find_items(small_folder(tmp_path))[0]
    job = BatchJob(model=Path("net"), images=tmp_path / "in", output=tmp_path / "out")
    for name in (f"{PATIENT}.nii.gz", f"{PATIENT}_entropy.nii.gz", f"{PATIENT}_measurements.csv"):
        said = batch_module._nameless(f"{name} cannot be written into {job.output}: No space.", job, item, "123")
        assert said == "123 cannot be written into 123: No space."


def small_folder(tmp_path: Path) -> Path:
    write_one(tmp_path / "in" / f"{PATIENT}.nii.gz", 0)
    return tmp_path / "in"


def test_folders_that_are_none(tmp_path: Path, network: Path) -> None:
    write_one(tmp_path / "image.zarr", 0)
    for place, words in (("nowhere", "There is no folder"), ("image.zarr", "is one OME-Zarr image")):
        with pytest.raises(FileError, match=words):
            find_items(tmp_path / place)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="holds no images"):
        find_items(tmp_path / "empty")
    job = BatchJob(model=tmp_path / "none.safetensors", images=tmp_path, output=tmp_path / "out")
    with pytest.raises(FileError, match="There is no weight file"):
        drain(batch(job))
