"""Named networks to start fresh, and the weights that come with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rskd.config import BACKGROUND, ClassInfo, ModelSpec
from rskd.errors import ModelError

PRESETS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="rskd-nano",
            embed_dim=64,
            depth=4,
            num_heads=2,
            image_size=128,
            stem_widths=(8, 16, 24),
            decoder_width=24,
        ),
        ModelSpec(name="rskd-micro", embed_dim=128, depth=4, num_heads=4, image_size=128),
        ModelSpec(
            name="rskd-small",
            embed_dim=192,
            depth=10,
            num_heads=3,
            image_size=128,
            stem_widths=(16, 32, 64),
            decoder_width=64,
        ),
        ModelSpec(
            name="rskd-teacher",
            embed_dim=192,
            depth=8,
            num_heads=6,
            patch_size=8,
            image_size=128,
            stem_widths=(16, 32, 64),
            decoder_width=96,
        ),
    )
}
"""Networks to start fresh, by name; small to large."""

COLORS = ("#e4572e", "#2e86ab", "#f2b134", "#5fad56", "#9b5de5", "#00a6a6", "#d7263d", "#8d6a9f")

_BUNDLED = Path(__file__).parent / "bundled"
BUNDLED: dict[str, Path] = {
    "retina-teacher": _BUNDLED / "retina-teacher.safetensors",
    "retina-student": _BUNDLED / "retina-student.safetensors",
    "hippocampus-teacher": _BUNDLED / "hippocampus-teacher.safetensors",
    "hippocampus-student": _BUNDLED / "hippocampus-student.safetensors",
}
"""Weight files inside the package: for demonstration, not for diagnosis."""


def weight_file(path: Path) -> Path:
    """Return the file that `path` means: itself, or the bundled one of that name where there is no such file.

    Examples
    --------
    >>> weight_file(Path("retina-student")).name
    'retina-student.safetensors'
    """
    return path if path.exists() else BUNDLED.get(str(path), path)


def fresh_spec(name: str, *, in_channels: int, classes: Sequence[str], overlapping: bool = False) -> ModelSpec:
    """Return the description of a named network for given channels and classes.

    Parameters
    ----------
    name
        A key of `PRESETS`.
    in_channels
        Number of image channels.
    classes
        Names of the classes without the background.
    overlapping
        Whether they may overlap.

    Raises
    ------
    ModelError
        If there is no network of this name.

    Examples
    --------
    >>> fresh_spec("rskd-nano", in_channels=3, classes=["vessel"]).classes[1].name
    'vessel'
    """
    if name not in PRESETS:
        raise ModelError(f"There is no network named {name!r}: choose one of {', '.join(PRESETS)}, or a weight file.")
    infos = tuple(ClassInfo(name=label, color=COLORS[i % len(COLORS)]) for i, label in enumerate(classes))
    own = {"in_channels": in_channels, "classes": (BACKGROUND, *infos), "overlapping": overlapping}
    fields = PRESETS[name].model_dump() | own
    return ModelSpec.model_validate(fields)


def student_spec(name: str, teacher: ModelSpec) -> ModelSpec:
    """Return the description of a named network that sees and says what `teacher` does.

    Examples
    --------
    >>> teacher = fresh_spec("rskd-teacher", in_channels=3, classes=["vessel"])
    >>> student_spec("rskd-nano", teacher).in_channels
    3
    """
    spec = fresh_spec(name, in_channels=teacher.in_channels, classes=[c.name for c in teacher.classes[1:]])
    shared = ("channels", "classes", "overlapping", "normalisation", "frame", "modality", "image_size", "spacing")
    return ModelSpec.model_validate(spec.model_dump() | {field: getattr(teacher, field) for field in shared})
