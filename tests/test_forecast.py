"""How long a training still takes, and whether it still gets better."""

import pytest

from napari_rskd._forecast import Forecast, left_words
from rskd.events import Epoch, Message, Step


def watched(seconds, steps=100, epochs=()):
    forecast = Forecast()
    for number, each in enumerate(seconds, 1):
        forecast.add(Step(number, steps, 1, {}, 1e-3, each))
    for event in epochs:
        forecast.add(event)
    return forecast


def test_nothing_is_foretold_before_the_first_step():
    assert watched([]).left() is None
    assert left_words(None) == "working out how long it takes"


def test_the_spread_is_that_of_the_steps():
    low, median, high = watched([1, 2, 3, 4, 5], steps=105).left()
    assert (low, median, high) == (200, 300, 400)


def test_old_steps_are_forgotten():
    assert watched([100] * 60 + [1] * 60, steps=220).left() == (100, 100, 100)


def test_the_checks_of_the_rounds_to_come_count():
    epochs = [Epoch(1, 3, {}, 0.5, seconds=15.0)]  # ten steps of a second, five seconds of validation
    assert watched([1] * 10, steps=30, epochs=epochs).left() == (30, 30, 30)


def test_other_events_are_passed_over():
    forecast = watched([1] * 5)
    forecast.add(Message("hello"))
    assert forecast.left() == (95, 95, 95)


@pytest.mark.parametrize(
    ("rounds", "epochs", "named"), [(3, 20, True), (2, 20, False), (3, 100, False), (15, 100, True)]
)
def test_a_plateau_is_named_after_a_share_of_the_rounds(rounds, epochs, named):
    events = [Epoch(1, epochs, {}, 0.5, best=True)] + [Epoch(2 + i, epochs, {}, 0.4) for i in range(rounds)]
    assert bool(watched([1], epochs=events).plateau()) is named


def test_without_masks_there_is_no_plateau():
    events = [Epoch(i, 10, {}, float("nan"), best=True) for i in range(1, 9)]
    assert watched([1], epochs=events).plateau() == ""


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ((30, 40, 80), "about 40 s left"),
        ((590, 600, 610), "about 10 min left"),
        ((300, 600, 1200), "about 10 min left (5 to 20 min)"),
        ((3000, 5000, 9000), "about 83 min left (50 min to 2.5 h)"),
    ],
)
def test_time_is_said_as_people_say_it(left, words):
    assert left_words(left) == words
