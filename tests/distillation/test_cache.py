"""The teacher's answers on disk: the same as asked, asked once, and never wrong after a kill or on a damaged disk."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rskd.config import DistillOptions, RankingOptions
from rskd.distillation.cache import cache_size, fits_half, open_cache
from rskd.distillation.features import Features
from rskd.distillation.objective import Objective
from rskd.errors import FileError
from rskd.events import Message, drain
from rskd.importance.attention import TokenImportance
from rskd.models.presets import fresh_spec
from rskd.models.segmenter import Segmenter

VIEWS = 6


def answer(*numbers):
    """What a made-up teacher says about some views."""

    def draw(number, *shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(number))

    scores = torch.stack([draw(number, 16).softmax(0) for number in numbers])
    return Features(
        logits=torch.stack([10 * draw(number, 2, 8, 8) for number in numbers]),
        grid=(4, 4),
        stages=tuple(torch.stack([draw(number + place, 3 + place, 4, 4) for number in numbers]) for place in (0, 1)),
        importance=(scores,),
        texture=torch.stack([draw(number, 5, 4, 4) for number in numbers]),
        importance_layout=(TokenImportance(scores, (4, 4), "block 0", torch.arange(16) // 4),),
    )


def opened(folder, key="key", views=VIEWS):
    """Open a cache; returns it and the sentences that were said."""
    events, task = [], open_cache(folder, views=views, example=answer(0), key=key)
    while True:
        try:
            events.append(next(task))
        except StopIteration as end:
            return end.value, [event.text for event in events if isinstance(event, Message)]


class Teacher:
    """Counts how often it is asked."""

    def __init__(self):
        self.asked = []

    def about(self, cache, *numbers):
        def ask():
            self.asked.append(numbers)
            return answer(*numbers)

        return cache.answers(numbers, ask)


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("logits", "texture")) and all(
        torch.equal(a, b)
        for name in ("stages", "importance")
        for a, b in zip(getattr(first, name), getattr(second, name), strict=True)
    )


def test_an_answer_comes_back_within_the_rounding_of_half_precision(tmp_path):
    cache, said = opened(tmp_path / "cache")
    assert said == []
    kept, asked = Teacher().about(cache, 3, 1), answer(3, 1)
    pairs = [(kept.logits, asked.logits), (kept.texture, asked.texture), *zip(kept.stages, asked.stages, strict=True)]
    for ours, expected in pairs:
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected, rtol=2**-11, atol=2**-25)
        assert not torch.equal(ours, expected)  # it is rounded even when it was only just asked
    assert torch.equal(kept.importance[0], asked.importance[0])
    layout, expected_layout = kept.importance_layout[0], asked.importance_layout[0]
    assert torch.equal(layout.scores, expected_layout.scores)
    assert torch.equal(layout.windows, expected_layout.windows)
    assert (layout.grid, layout.name, kept.grid) == (expected_layout.grid, expected_layout.name, asked.grid)


def test_the_teacher_is_asked_once_per_view_even_in_another_process(tmp_path):
    teacher = Teacher()
    cache, _ = opened(tmp_path / "cache")
    first = teacher.about(cache, 0, 1)
    again, said = opened(tmp_path / "cache")
    assert said == []
    assert same(teacher.about(again, 0, 1), first)
    assert teacher.asked == [(0, 1)]


def test_if_one_answer_is_missing_the_batch_is_asked_and_the_others_stay(tmp_path):
    cache, _ = opened(tmp_path / "cache")
    first = cache.answers([0], lambda: answer(5))  # as the batch of that time made it
    mixed = Teacher().about(cache, 0, 2)
    assert torch.equal(mixed.logits[:1], first.logits)
    torch.testing.assert_close(mixed.logits[1:], answer(2).logits, rtol=2**-11, atol=2**-25)


def test_a_view_may_come_twice_in_a_batch(tmp_path):
    cache, _ = opened(tmp_path / "cache")
    seen = Teacher().about(cache, 4, 4)
    assert torch.equal(seen.logits[0], seen.logits[1])


def test_what_half_precision_cannot_hold_is_used_as_it_is(tmp_path):
    large = answer(0)
    large.stages[0][0, 0] = 1e5
    assert not fits_half(large)
    cache, _ = opened(tmp_path / "cache")
    assert cache.answers([0], lambda: large) is large
    teacher = Teacher()
    teacher.about(cache, 0)
    assert teacher.asked == [(0,)]


# ------------------------------------------------------------------------------------------------- kills and damage


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("moment", [0.002, 0.01, 0.05])
def test_a_kill_in_the_middle_leaves_only_true_answers(tmp_path, moment):
    views = 20_000
    cache, _ = opened(tmp_path / "cache", views=views)
    child = os.fork()
    if child == 0:
        for number in range(views):
            cache.answers([number], lambda number=number: answer(number))
        os._exit(0)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    cache, said = opened(tmp_path / "cache", views=views)
    assert said == []
    teacher = Teacher()
    for number in range(200):
        seen = teacher.about(cache, number)
        torch.testing.assert_close(seen.logits, answer(number).logits, rtol=2**-11, atol=2**-25)


def test_an_answer_without_its_checksum_does_not_count(tmp_path):
    cache, _ = opened(tmp_path / "cache")
    Teacher().about(cache, 0, 1)
    sums = tmp_path / "cache" / "sums.bin"
    sums.write_bytes(bytes(4) + sums.read_bytes()[4:])
    again, said = opened(tmp_path / "cache")
    teacher = Teacher()
    teacher.about(again, 1)
    assert (said, teacher.asked) == ([], [])
    teacher.about(again, 0)
    assert teacher.asked == [(0,)]


def test_a_damaged_answer_is_asked_again_and_said(tmp_path):
    cache, _ = opened(tmp_path / "cache")
    Teacher().about(cache, *range(VIEWS))
    file = tmp_path / "cache" / "answers.bin"
    content = bytearray(file.read_bytes())
    content[len(content) // VIEWS * 2 + 40] ^= 1
    file.write_bytes(content)
    again, said = opened(tmp_path / "cache")
    assert said == ["1 answers of the teacher were damaged on disk: it is asked again."]
    teacher = Teacher()
    for number in range(VIEWS):
        teacher.about(again, number)
    assert teacher.asked == [(2,)]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "about.json").write_text("{"), "are damaged"),
        (lambda folder: (folder / "about.json").unlink(), "are damaged"),
        (lambda folder: (folder / "answers.bin").write_bytes(b"short"), "are damaged"),
        (lambda folder: (folder / "sums.bin").unlink(), "are damaged"),
        (lambda folder: (folder / "about.json").write_text(json.dumps({"key": "of old"})), "belong to another teacher"),
    ],
)
def test_a_cache_that_does_not_fit_is_made_anew_with_a_sentence(tmp_path, damage, sentence):
    cache, _ = opened(tmp_path / "cache")
    Teacher().about(cache, 0)
    damage(tmp_path / "cache")
    again, (said,) = opened(tmp_path / "cache")
    assert sentence in said
    teacher = Teacher()
    teacher.about(again, 0)
    assert teacher.asked == [(0,)]
    assert opened(tmp_path / "cache")[1] == []


@pytest.mark.parametrize("change", [{"key": "other"}, {"views": VIEWS + 1}])
def test_answers_to_something_else_are_not_used(tmp_path, change):
    cache, _ = opened(tmp_path / "cache")
    Teacher().about(cache, 0)
    _, (said,) = opened(tmp_path / "cache", **change)
    assert "belong to another teacher, data or augmentation" in said


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve space")
def test_a_full_disk_says_so_before_the_first_step(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FileError, match=r"need 0\.00 GB .* No space left"):
        opened(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_fills_up_later_costs_nothing_but_the_cache(tmp_path, monkeypatch):
    cache, _ = opened(tmp_path / "cache")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        assert torch.equal(Teacher().about(cache, 0).logits, answer(0).logits)
    assert "No space left" in cache.trouble
    assert opened(tmp_path / "cache")[1] == []


def test_the_files_are_as_large_as_was_said_and_can_be_deleted(tmp_path):
    cache, _ = opened(tmp_path / "cache")
    files = [tmp_path / "cache" / name for name in ("answers.bin", "sums.bin")]
    assert sum(file.stat().st_size for file in files) == cache_size(answer(0), VIEWS)
    per_view = np.prod((2, 8, 8)) + (3 + 4 + 5) * 16  # numbers of 16 bits
    assert cache_size(answer(0), VIEWS) == VIEWS * (2 * per_view + 4 * 16 + 4)
    del cache  # an open map cannot be deleted on Windows
    shutil.rmtree(tmp_path / "cache")


# ---------------------------------------------------------------------------------------------- with a real teacher


@pytest.mark.parametrize("definition", ["received", "feature_norm"])
def test_losses_with_kept_answers_are_those_without(tmp_path, definition):
    torch.manual_seed(0)
    teacher, student = (Segmenter(fresh_spec("rskd-nano", in_channels=1, classes=["organ"])) for _ in range(2))
    options = DistillOptions(ranking=RankingOptions(definition=definition))
    objective = Objective(student, teacher, options).eval()
    images, targets = torch.randn(3, 1, 64, 64), torch.randint(0, 2, (3, 64, 64))
    plain = objective(images, targets)
    objective.cache = drain(open_cache(tmp_path / "cache", views=3, example=objective.ask(images[:1]), key="key"))
    first, second = objective(images, targets, (2, 0, 1)), objective(images, targets, (2, 0, 1))
    turned = objective(images[[1, 2, 0]], targets[[1, 2, 0]], (0, 1, 2))
    assert plain.keys() == first.keys() == {"task", "logits", "ranking", "texture", "fusion"}
    for name in plain:
        assert first[name].item() == pytest.approx(plain[name].item(), rel=1e-3)
        assert torch.equal(first[name], second[name])
        assert turned[name].item() == pytest.approx(first[name].item(), rel=1e-4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "ask", lambda images: pytest.fail("the teacher was asked again"))
        objective(images, targets, (0, 1, 2))
