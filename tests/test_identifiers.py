"""A patient's name in every tag of a DICOM file: whatever jobs write, log or say, it is not in there."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rskd.config import ContourletOptions, DataOptions
from rskd.engine.client import Engine
from rskd.errors import RskdError
from rskd.events import Task, drain
from rskd.io import write_image
from rskd.jobs import ContourletJob, EvaluateJob, RankJob, SegmentJob
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.run import run
from rskd.scan import Scan

_spec = importlib.util.spec_from_file_location("_labels", Path(__file__).parent / "io" / "test_dicom_labels.py")
assert _spec
assert _spec.loader
labels: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(labels)
files = labels.files


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Weights, a series, single planes with masks; and a plane whose header has the name where a number belongs."""
    torch.manual_seed(0)
    model = Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"]))
    weights.save(tmp_path / "net.safetensors", model, card={})
    files.series(tmp_path / "scan", change=labels.put_name_everywhere)
    (tmp_path / "planes").mkdir()
    for number in range(2):
        plane = files.image(files.voxels()[number], position=[0, 0, 0], directions=np.eye(3), number=number + 1)
        labels.put_name_everywhere(plane)
        plane.save_as(tmp_path / "planes" / f"{number}.dcm", enforce_file_format=True)
        write_image(tmp_path / "masks" / f"{number}.png", Scan((files.voxels()[number] % 2).astype(np.uint8), "yx"))
    content = (tmp_path / "planes" / "0.dcm").read_bytes().replace(b"0.8\\0.6 ", b"Zyxwerth")
    (tmp_path / "damaged.dcm").write_bytes(content)
    return tmp_path


def jobs(scans: Path) -> list[Any]:
    net, out = scans / "net.safetensors", scans / "out"
    data = DataOptions(images=scans / "planes", masks=scans / "masks")
    return [
        *(SegmentJob(model=net, image=scans / "scan", output=out / f"a.{kind}") for kind in ("nii.gz", "dcm", "zarr")),
        RankJob(teacher=net, image=scans / "planes" / "0.dcm", output=out / "ranks"),
        ContourletJob(image=scans / "planes" / "0.dcm", output=out / "bands", options=ContourletOptions(levels=(2,))),
        EvaluateJob(model=net, data=data, output=out / "table.csv"),
        SegmentJob(model=net, image=scans / "damaged.dcm"),
    ]


def told(task: Task[Any]) -> str:
    """Everything that a job says: its outcome, or its complaint."""
    try:
        return repr(drain(task))
    except RskdError as error:
        return str(error)


def test_jobs_do_not_repeat_the_name(
    scans: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    said = [told(run(job)) for job in jobs(scans)]
    assert "damaged.dcm begins like a DICOM file" in said[-1]
    written = {path.name for path in (scans / "out").iterdir()}
    assert written == {"a.nii.gz", "a.dcm", "a.zarr", "a_recipe.json", "ranks", "bands", "table.csv"}
    assert labels.leaks(scans / "out") == []
    said += [caplog.text, *capfd.readouterr()]
    assert labels.NAME.lower() not in "".join(said).lower()


def test_the_log_of_the_engine_does_not_either(scans: Path, tmp_path: Path) -> None:
    with Engine(scratch=tmp_path, logs=tmp_path / "logs") as engine:
        said = [told(engine.run(jobs(scans)[index])) for index in (0, -1)]
        assert "damaged.dcm begins like a DICOM file" in said[-1]
        assert labels.NAME.lower() not in "".join(said).lower()
        assert engine.log_path is not None
        assert engine.log_path.is_file()
        assert labels.leaks(tmp_path / "logs") == []
