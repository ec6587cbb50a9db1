"""Pictures say with patterns what they say with colours, and words and curves take whatever a run may hold."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rskd.events import Epoch, Reference, Step
from rskd.jobs import TrainJob
from rskd.report import curves, pictures, words
from rskd.report.measure import Plane
from rskd.report.story import Story


def plane(**fields: object) -> Plane:
    truth = np.zeros((8, 8), np.uint8)
    truth[2:6, 2:6] = 1
    values = {"image": np.arange(64.0).reshape(1, 8, 8), "truth": truth, "region": np.ones((8, 8), bool)}
    return Plane("3fa0", 1, 1, **(values | {"labels": {}} | fields))  # type: ignore[arg-type]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_small_planes_are_enlarged_and_large_ones_are_not() -> None:
    assert pixels(pictures.photograph(plane())).shape == (360, 360, 3)
    large = plane(image=np.zeros((3, 512, 300), np.uint8), truth=np.zeros((512, 300), np.uint8))
    assert pixels(pictures.photograph(large)).shape == (512, 300, 3)


def test_colours_are_shown_as_they_are_and_anything_else_between_its_percentiles() -> None:
    colour = np.random.default_rng(0).integers(0, 255, (3, 8, 8), np.uint8)
    np.testing.assert_array_equal(pictures.backdrop(plane(image=colour)), colour.transpose(1, 2, 0))
    for factor in (1.0, -40.0, 1e6):
        shown = pictures.backdrop(plane(image=factor * np.arange(64.0).reshape(1, 8, 8)))
        assert (shown.min(), shown.max()) == (0, 255)
    assert pictures.backdrop(plane(image=np.full((1, 8, 8), 7.0))).max() == 0


def test_only_the_class_is_drawn_over_the_grey_image() -> None:
    shown = plane(image=np.full((1, 8, 8), 1.0))
    picture = pixels(pictures.overlay(shown, shown.truth, ["#000000", "#ff0000"])).reshape(8, 45, 8, 45, 3)
    red = picture[..., 0].max(axis=(1, 3)) > 0
    np.testing.assert_array_equal(red, shown.truth == 1)


def test_a_quartet_has_teacher_and_student_over_mask_and_mistakes() -> None:
    right, wrong = plane().truth, np.zeros((8, 8), np.uint8)
    flat = plane(image=np.full((1, 8, 8), 1.0), labels={"teacher": right, "student": wrong})
    picture = pixels(pictures.quartet(flat, ["#000000", "#ff0000"]))
    tile = 360 + 4
    assert picture.shape == (2 * tile, 2 * tile, 3)
    coloured = (np.ptp(picture.astype(int), axis=-1) > 0).reshape(2, tile, 2, tile).any(axis=(1, 3))
    assert coloured.tolist() == [[True, False], [True, True]]  # the student sees nothing, which is its mistake


def test_a_quartet_without_a_mask_compares_with_the_teacher() -> None:
    right, wrong = plane().truth, np.zeros((8, 8), np.uint8)
    flat = {"image": np.full((1, 8, 8), 1.0), "truth": wrong, "region": np.zeros((8, 8), bool)}
    for student, expected in ((right, False), (wrong, True)):
        shown = plane(**flat, labels={"teacher": right, "student": student})
        picture = pixels(pictures.quartet(shown, ["#000000", "#ff0000"]))
        assert (np.ptp(picture[364:, 364:].astype(int), axis=-1) > 0).any() == expected


def test_a_quartet_without_a_teacher_begins_with_the_image() -> None:
    shown = plane(image=np.full((1, 8, 8), 1.0), labels={"student": plane().truth})
    picture = pixels(pictures.quartet(shown, ["#000000", "#ff0000"]))
    assert not np.ptp(picture[:364, :364].astype(int), axis=-1).any()
    assert np.ptp(picture[:364, 364:].astype(int), axis=-1).any()


def test_mistakes_by_kind_and_only_inside_of_the_region() -> None:
    labels = np.zeros((8, 8), np.uint8)
    labels[2:6, 3:7] = 1
    labels[3, 4] = 2
    shown = plane()
    kinds = pictures.mistakes(shown, labels)
    expected = np.zeros((8, 8), np.uint8)
    expected[2:6, 2], expected[2:6, 6], expected[3, 4] = pictures.MISSED, pictures.EXTRA, pictures.MIXED_UP
    np.testing.assert_array_equal(kinds, expected)
    assert pictures.mistakes(plane(region=np.zeros((8, 8), bool)), labels).max() == 0


def test_kinds_of_mistakes_differ_without_colour() -> None:
    greys = [pixels(pictures.swatch(kind)).astype(float).mean(-1) for kind in (1, 2, 3)]
    assert [len(np.unique(grey)) > 1 for grey in greys] == [True, False, True]
    assert greys[0].max() == 255
    assert greys[2].min() == 0


def test_neighbouring_classes_differ_without_colour() -> None:
    fills = [pictures.pattern(index, (24, 24)) for index in range(1, 6)]
    for place, fill in enumerate(fills):
        assert all((fill != other).any() for other in fills[:place])


def test_curves_of_whatever_a_run_holds() -> None:
    steps = [Step(n, 3, 1, {"task": math.nan if n == 2 else 1.0, "total": 1.0}, 1e-3, 0.1) for n in (1, 2, 3)]
    assert curves.loss_curves(steps).startswith(b"<?xml")
    two = {"a": 0.5, "b": math.nan}
    for epochs in ([Epoch(1, 2, {}, math.nan)], [Epoch(1, 2, {}, 0.5, two, True), Epoch(2, 2, {}, 0.4, two)]):
        drawing = curves.dice_curves(epochs, {"teacher": Reference("teacher", 0.9)})
        assert b"</svg>" in drawing
        assert b"<script" not in drawing


def story(**fields: object) -> Story:
    job = TrainJob(model="rskd-nano", data={"images": Path("i")}, run=Path("r"))
    values: dict[str, object] = dict.fromkeys(("steps", "epochs", "messages", "sessions", "scores"), ())
    values |= {"references": {}, "data": None, "networks": {}, "objective": None, "validation": None}
    return Story(job=job, **(values | fields))  # type: ignore[arg-type]


def test_a_training_without_teacher_in_words() -> None:
    epochs = (Epoch(1, 30, {}, 0.8123, {"organ": 0.8123}, True, 65.0),)
    networks = {"student": {"name": "n", "encoder": "e", "parameters": 240_000, "bytes": 1_000_000}}
    text = " ".join(words.summary(story(epochs=epochs, networks=networks), {}, {"student": 0.05, "device": "CPU"}))
    assert "the network reaches a Dice of <strong>0.812</strong>" in text
    assert "0.24 million parameters; its file takes 1.0 MB." in text
    assert "segments a picture in <strong>50 ms</strong>." in text
    assert "1 min 5 s for 1 round; the best network is that of round 1." in text
    assert "teacher" not in text


def test_what_was_missed_is_said() -> None:
    rows = [{"case": name, "dice": {"a": dice, "b": 1.0}} for name, dice in (("one", 0.0), ("two", 0.9))]
    table = {"dice": {"a": 0.45, "b": 1.0}, "cases": rows, "missed": {"a": 1, "b": 0}}
    text = " ".join(words.summary(story(), {"student": table}, {}))
    assert "The weakest class is a (Dice 0.450)." in text
    assert "The worst image, one, has a Dice of 0.500" in text
    assert "In 1 image a is in the mask or in the segmentation, but not in both." in text


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [(0.9, 0.902, "practically the same"), (0.8, 0.9, "0.100 below it"), (0.95, 0.9, "0.050 better")],
)
def test_student_and_teacher_are_compared(student: float, teacher: float, said: str) -> None:
    tables = {
        role: {"dice": {"a": dice}, "cases": [{"case": "one", "dice": {"a": dice}}]}
        for role, dice in (("student", student), ("teacher", teacher))
    }
    assert said in words.summary(story(), tables, {})[0]


def test_names_out_of_a_file_are_words_in_a_report_and_nothing_else() -> None:
    evil = "<b>organ</b>"
    scores = {evil: 0.25, "other": 0.5}
    cases = [{"case": "a1", "dice": scores}, {"case": "b2", "dice": scores}]
    tables = {"student": {"dice": scores, "cases": cases, "missed": {evil: 1}}}
    speed = {"student": 0.01, "device": evil}
    text = " ".join(words.summary(story(epochs=(Epoch(1, 1, {}, 0.4, scores, True),)), tables, speed))
    assert text.count("&lt;b&gt;organ&lt;/b&gt;") == 3
    assert "<b>" not in text
