"""Deletion and insertion curves on models whose truth is known."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from rskd.errors import ParameterError
from rskd.events import Progress, drain
from rskd.importance import rank_tokens
from rskd.importance.deletion import delete_tokens, deletion_check, overlapping_certainty

GRID = (4, 4)


def contrast_of(tokens: list[int]):
    """A classifier that is sure of class 1 as long as the given cells (of 4 × 4 pixels) have contrast."""

    def model(images: Tensor) -> Tensor:
        cells = images[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).std(-1).flatten(1)  # B N
        evidence = cells[:, tokens].mean(1)
        return torch.stack([torch.zeros_like(evidence), 8 * evidence - 2], 1)

    return model


def images(batch: int = 6) -> Tensor:
    return torch.randn(batch, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def check(scores: Tensor, model, **options):
    generator = torch.Generator().manual_seed(1)
    return drain(deletion_check(model, images(), ranking=rank_tokens(scores, GRID), generator=generator, **options))


def test_a_true_map_is_better_than_chance_and_its_opposite_is_worse():
    important = [0, 5, 10]
    scores = torch.zeros(6, 16)
    scores[:, important] = 1.0
    right, wrong = check(scores, contrast_of(important)), check(-scores, contrast_of(important))
    assert right.deletion_gain.verdict == right.insertion_gain.verdict == "better than chance"
    assert wrong.deletion_gain.verdict == wrong.insertion_gain.verdict == "worse than chance"
    assert right.deletion[:, 0] == pytest.approx(right.random_deletion[:, 0])
    assert right.deletion[:, -1] == pytest.approx(right.insertion[:, 0])


def test_a_random_map_is_no_better_than_chance():
    scores = torch.rand(6, 16, generator=torch.Generator().manual_seed(5))
    result = check(scores, contrast_of(list(range(16))), random_orders=16)
    assert result.deletion_gain.verdict == "no better than chance"
    assert result.insertion_gain.verdict == "no better than chance"


def test_the_interval_is_students_t():
    scores = torch.rand(6, 16, generator=torch.Generator().manual_seed(5))
    gain = check(scores, contrast_of([3]), confidence=0.9).deletion_gain
    low, high = stats.t.interval(0.9, 5, loc=np.mean(gain.per_image), scale=stats.sem(gain.per_image))
    assert (gain.low, gain.high) == pytest.approx((low, high))


def test_areas_by_hand():
    def model(pictures: Tensor) -> Tensor:
        return pictures.flatten(1)[:, :1]

    pictures = torch.tensor([[[[4.0, 0.0, 2.0, 2.0]]], [[[4.0, 0.0, 2.0, 2.0]]]])
    ranking = rank_tokens(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), (1, 2))
    result = drain(
        deletion_check(
            model, pictures, ranking=ranking, generator=torch.Generator().manual_seed(0),
            score=lambda out: out[:, 0], steps=2, random_orders=1,
        )
    )  # fmt: skip
    assert result.deletion.tolist() == [[4, 2, 2]] * 2  # the first cell falls to its mean at once
    assert result.insertion.tolist() == [[2, 4, 4]] * 2
    chance = result.random_deletion
    expected = np.trapezoid(chance - result.deletion, [0, 0.5, 1])
    assert result.deletion_gain.per_image == pytest.approx(expected)


def test_segmentation_is_scored_on_its_foreground():
    def model(pictures: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(pictures), 10 * pictures - 5], 1)

    pictures = torch.zeros(1, 1, 16, 16)
    pictures[:, :, 0:2, 0:4] = 1.0
    ranking = rank_tokens(torch.eye(16)[:1], GRID)
    result = drain(
        deletion_check(model, pictures, ranking=ranking, generator=torch.Generator().manual_seed(0), steps=16)
    )
    assert result.deletion[0, 0] == pytest.approx(torch.sigmoid(torch.tensor(5.0)).item())
    assert result.deletion[0, 1] == pytest.approx(0.5)  # the mean of the cell is 0.5
    assert np.isnan(result.deletion_gain.low)
    assert result.deletion_gain.verdict == "no better than chance"


def test_overlapping_classes_are_scored_where_they_are_found():
    found = torch.tensor([[[[3.0, -3.0]], [[3.0, -3.0]]], [[[-3.0, -3.0]], [[-3.0, -3.0]]]])  # both in one pixel; none
    score = overlapping_certainty(lambda _: found, torch.zeros(2, 1, 1, 2))
    sure = torch.sigmoid(torch.tensor(3.0)).item()
    assert score(found).tolist() == pytest.approx([sure, sure])
    gone = torch.tensor([[[[0.0, 7.0]], [[3.0, 7.0]]], [[[0.0, -3.0]], [[-3.0, -3.0]]]])
    assert score(gone).tolist() == pytest.approx([(0.5 + sure) / 2, (0.5 + 3 * sure) / 4])


def test_cells_are_replaced_by_their_mean_at_any_size():
    pictures = torch.rand(2, 3, 15, 10)
    assert torch.equal(delete_tokens(pictures, torch.zeros(2, 5, 5, dtype=torch.bool)), pictures)
    gone = delete_tokens(pictures, torch.ones(2, 5, 5, dtype=torch.bool))
    assert torch.allclose(gone[0, 0, :3, :2], pictures[0, 0, :3, :2].mean().expand(3, 2))
    assert torch.allclose(gone.mean((2, 3)), pictures.mean((2, 3)), atol=1e-6)


def test_it_yields_and_is_reproducible():
    scores = torch.rand(6, 16)
    events = list(
        deletion_check(
            contrast_of([0]), images(), ranking=rank_tokens(scores, GRID), generator=torch.Generator(), random_orders=3
        )
    )
    assert events == [Progress(i, 4, "orders") for i in range(1, 5)]
    one, two = check(scores, contrast_of([0])), check(scores, contrast_of([0]))
    assert np.array_equal(one.random_deletion, two.random_deletion)


def test_a_ranking_of_other_images_is_refused():
    with pytest.raises(ParameterError, match="not one of 6 images"):
        drain(
            deletion_check(
                contrast_of([0]), images(), ranking=rank_tokens(torch.rand(2, 16), GRID), generator=torch.Generator()
            )
        )
