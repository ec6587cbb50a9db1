"""Which tokens a teacher and a student find important, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from napari.layers import Image
from qtpy.QtWidgets import QCheckBox

from napari_rskd._fields import LayerBox
from napari_rskd._form import Form
from napari_rskd._job import Order, Work
from napari_rskd._layers import Source, add_layer, importance_layers, visible_slice
from napari_rskd._panel import Panel, text
from napari_rskd._session import Model, follow_session, session_of
from napari_rskd._settings import compute_options
from rskd.config import RankOptions
from rskd.jobs import Outcome, RankJob

ROLES = ("teacher", "student")
AGREEMENT = {
    "spearman": "Rank correlation (Spearman)",
    "kendall": "Rank correlation (Kendall)",
    "weighted_tau": "The same, top weighted (τ)",
    "overlap": "Share of the top in common",
    "ndcg": "Student finds teacher's top (NDCG)",
}


class TokensWidget(Panel):
    """Token importance of the visible slice."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, verb="Rank tokens")
        self.session = session_of(napari_viewer)
        self.image = LayerBox(napari_viewer, Image)
        self.roles = {role: QCheckBox(checked=True, objectName=role) for role in ROLES}
        self.options: Form[RankOptions] = Form(RankOptions())
        self.agreement = text(name="agreement")
        self._source: Source | None = None
        self.options.put_above(image=self.image)
        self.column.addWidget(self.options)
        for box in self.roles.values():
            self.column.addWidget(box)
            box.toggled.connect(self.refresh)
        self.column.addWidget(self.agreement)
        self.image.changed.connect(self.refresh)
        follow_session(self, self.session, self._offer)

    def _offer(self) -> None:
        for role, box in self.roles.items():
            model: Model | None = getattr(self.session, role)
            box.setEnabled(model is not None)
            box.setText(f"{role.capitalize()}: {model.name if model else 'none loaded'}")
        self.refresh()

    def chosen(self) -> dict[str, Model]:
        """Return the networks to look into, by role."""
        models = {role: getattr(self.session, role) for role in ROLES}
        return {role: model for role, model in models.items() if model is not None and self.roles[role].isChecked()}

    def reason(self) -> str:
        """Return why it cannot start."""
        if self.image.layer() is None:
            return "Open an image first: File › Open, or File › Open Sample › RSKD."
        if not any(getattr(self.session, role) for role in ROLES):
            return "Load a teacher or a student first, in the Models panel."
        if not self.chosen():
            return "Tick the teacher, the student, or both."
        return ""

    def launch(self) -> Work:
        """Rank the tokens of what is in view."""
        layer = self.image.layer()
        plane, axes, self._source = visible_slice(layer, self.viewer.dims.point)
        return rank_work(plane, axes, self.chosen(), options=self.options.value(), name=layer.name)

    def show_result(self, outcome: Outcome) -> None:
        """Add a map and numbered points per network, and say how far they agree."""
        if self._source is None:
            return
        for data in rank_layers(outcome, self._source):
            add_layer(self.viewer, data)
        self.agreement.setText(agreement_words(outcome.value.get("agreement", {})))


def rank_work(plane: Any, axes: str, models: Mapping[str, Model], *, options: RankOptions, name: str) -> Work:
    """Return the job that ranks the tokens of a picture for a teacher, a student, or both."""
    paths = {role: model.path for role, model in models.items()}
    job = RankJob(axes=axes, options=options, compute=compute_options(), **paths)

    def order() -> Order:
        return job, {"image": plane}

    return Work(order, title=f"Ranking the tokens of {name}")


def rank_layers(outcome: Outcome, source: Source) -> list[Any]:
    """Return the layers of a ranking, the student's on top."""
    return [
        layer
        for role in ROLES
        if role in outcome.value
        for layer in importance_layers(
            role,
            outcome.value[role],
            outcome.arrays[f"{role}_importance"],
            outcome.arrays[f"{role}_order"],
            source,
        )
    ]


def agreement_words(agreement: Mapping[str, Any]) -> str:
    """Return the agreement numbers as lines.

    Examples
    --------
    >>> agreement_words({"spearman": 0.5})
    '<b>Agreement of teacher and student</b><br>Rank correlation (Spearman): 0.50'
    """
    numbers = [f"{title}: {agreement[key]:.2f}" for key, title in AGREEMENT.items() if key in agreement]
    return "<br>".join(["<b>Agreement of teacher and student</b>", *numbers]) if numbers else ""
