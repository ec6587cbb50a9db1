"""A pair and data so small that a run takes a second or two."""

import pytest
import torch

from rskd.config import DataOptions, DistillOptions, TaskLossOptions, TextureOptions, TrainOptions
from rskd.jobs import DistillJob
from rskd.models import weights
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter
from rskd.phantom import write_phantoms

TINY = TrainOptions(
    epochs=2, steps_per_epoch=4, batch_size=4, patch=64, learning_rate=1e-4, checkpoint_minutes=0, report=False
)


@pytest.fixture(scope="session")
def pair_folder(tmp_path_factory):
    """Images, masks, an untrained teacher, and the description of a student."""
    folder = tmp_path_factory.mktemp("pair")
    write_phantoms(folder, count=4, size=64, seed=1)
    spec = fresh_spec("rskd-nano", in_channels=3, classes=["vessel"])
    spec = spec.model_copy(update={"image_size": 64, "norm": "group"})
    (folder / "student.json").write_text(spec.model_dump_json())
    with torch.random.fork_rng():
        torch.manual_seed(7)
        weights.save(folder / "teacher.safetensors", Segmenter(spec), card={})
    return folder


@pytest.fixture
def job(pair_folder, tmp_path):
    """A distillation in which nothing depends on how a batch is divided."""
    return DistillJob(
        teacher=pair_folder / "teacher.safetensors",
        student=str(pair_folder / "student.json"),
        data=DataOptions(images=pair_folder / "images", masks=pair_folder / "masks", validation_share=0.25),
        run=tmp_path / "run",
        training=TINY.model_copy(update={"loss": TaskLossOptions(per_image=True)}),
        distillation=DistillOptions(texture=TextureOptions(per_image=True)),
    )
