import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from monai.metrics import compute_dice, compute_iou
from sklearn.metrics import confusion_matrix as sklearn_confusion

from rskd.errors import DataError
from rskd.metrics import confusion_matrix, dice, dice_per_class, iou, iou_per_class

LABELS = arrays.arrays(np.uint8, (2, 5, 4), elements=st.integers(0, 3))


def one_hot(labels: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 4).movedim(-1, 0)[None]


@given(LABELS, LABELS)
def test_agrees_with_monai_and_scikit_learn(prediction: np.ndarray, truth: np.ndarray) -> None:
    expected = sklearn_confusion(truth.ravel(), prediction.ravel(), labels=range(4))
    np.testing.assert_array_equal(confusion_matrix(prediction, truth, 4), expected)
    # MONAI gives NaN wherever a class is not in the truth; ours is 0 there if it was predicted
    missed = np.array([k in prediction and k not in truth for k in range(4)])
    for ours, theirs in ((dice_per_class, compute_dice), (iou_per_class, compute_iou)):
        reference = theirs(one_hot(prediction), one_hot(truth))[0].numpy()
        np.testing.assert_allclose(
            ours(prediction, truth, 4), np.where(missed, 0, reference), rtol=1e-6, equal_nan=True
        )


@given(LABELS, LABELS, arrays.arrays(bool, (2, 5, 4)))
def test_only_the_region_counts(prediction: np.ndarray, truth: np.ndarray, region: np.ndarray) -> None:
    inside = confusion_matrix(prediction, truth, 4, region=region)
    outside = confusion_matrix(prediction, truth, 4, region=~region)
    np.testing.assert_array_equal(inside + outside, confusion_matrix(prediction, truth, 4))
    np.testing.assert_array_equal(inside, confusion_matrix(prediction[region], truth[region], 4))
    np.testing.assert_array_equal(inside, confusion_matrix(prediction, truth, 4, region=region * np.uint8(255)))


def test_by_hand() -> None:
    prediction = [[1, 1, 0], [0, 2, 2]]
    truth = [[1, 0, 0], [0, 2, 1]]
    # class 1: one common, two predicted, two true; class 2: one common, two predicted, one true; class 3: nowhere
    np.testing.assert_allclose(dice_per_class(prediction, truth, 4), [4 / 5, 1 / 2, 2 / 3, np.nan])
    np.testing.assert_allclose(iou_per_class(prediction, truth, 4), [2 / 3, 1 / 3, 1 / 2, np.nan])


def test_nothing_inside_the_region_is_no_score() -> None:
    assert np.isnan(dice_per_class([0, 1], [0, 1], 2, region=[0, 0])).all()


@given(arrays.arrays(np.int64, (3, 3), elements=st.integers(0, 50)))
def test_dice_and_iou_tell_the_same(confusion: np.ndarray) -> None:
    jaccard = iou(confusion)
    np.testing.assert_allclose(dice(confusion), 2 * jaccard / (1 + jaccard), equal_nan=True)


@pytest.mark.parametrize(
    ("prediction", "truth", "region", "words"),
    [
        ([0, 1], [0, 1, 1], None, r"\(2,\), \(3,\)"),
        ([0, 1], [0, 1], [1], r"\(2,\), \(2,\), \(1,\)"),
        ([0, 2], [0, 1], None, "The prediction has values 0 … 2: 2 classes allow 0 … 1"),
        ([0, 1], [-1, 1], None, "The truth has values -1 … 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    prediction: list[int], truth: list[int], region: list[int] | None, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        dice_per_class(prediction, truth, 2, region=region)
