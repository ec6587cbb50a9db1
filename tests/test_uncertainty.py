"""Maps of uncertainty against scipy, their properties, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from rskd import uncertainty
from rskd.errors import DataError
from rskd.uncertainty import divergence, entropy, margin


def softmax(seed: int, classes: int, *shape: int, sharpness: float = 3.0) -> np.ndarray:
    logits = sharpness * np.random.default_rng(seed).normal(size=(classes, *shape))
    powers = np.exp(logits - logits.max(0))
    return (powers / powers.sum(0)).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_against_scipy(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncertainty, "_PART", 7)  # several parts, the last one smaller
    p, q = (softmax(seed, classes, 5, 4, 3) for seed in (0, 1))
    np.testing.assert_allclose(entropy(p), scipy_entropy(p.astype(float), axis=0) / np.log(classes), atol=1e-6)
    expected = jensenshannon(p.astype(float), q.astype(float), base=2, axis=0) ** 2
    np.testing.assert_allclose(divergence(p, q), expected, atol=1e-6)
    ranked = np.sort(p, axis=0)
    np.testing.assert_allclose(margin(p), ranked[-1] - ranked[-2], atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 9999), st.integers(0, 9999)),
    classes=st.integers(2, 6),
    sharpness=st.sampled_from([0.0, 1.0, 50.0]),
)
def test_properties(seeds: tuple[int, int], classes: int, sharpness: float) -> None:
    p, q = (softmax(seed, classes, 6, 5, sharpness=sharpness) for seed in seeds)
    for found in (entropy(p), margin(p), divergence(p, q)):
        assert found.dtype == np.float32
        assert found.shape == (6, 5)
        assert (found >= 0).all()
        assert (found <= 1).all()
    order = np.random.default_rng(0).permutation(classes)
    np.testing.assert_allclose(entropy(p[order]), entropy(p), atol=1e-6)
    np.testing.assert_allclose(margin(p[order]), margin(p), atol=1e-6)
    np.testing.assert_allclose(divergence(q, p), divergence(p, q), atol=1e-6)
    np.testing.assert_allclose(divergence(p, p), 0, atol=1e-6)
    mixed = (p + 1 / classes) / 2  # nearer to "all alike"
    assert (entropy(mixed) >= entropy(p) - 1e-6).all()
    np.testing.assert_allclose(margin(mixed), margin(p) / 2, atol=1e-6)


def test_by_hand() -> None:
    sure, even = np.array([[1.0], [0.0], [0.0]]), np.full((3, 1), 1 / 3)
    halves = np.array([[0.5], [0.5], [0.0]])
    assert (entropy(sure)[0], margin(sure)[0]) == (0, 1)
    assert entropy(even)[0] == pytest.approx(1)
    assert margin(even)[0] == 0
    assert entropy(halves)[0] == pytest.approx(np.log(2) / np.log(3))
    # m = (3/4, 1/4, 0); H(m) = 0.8113 bit, H(sure) = 0, H(halves) = 1 bit
    assert divergence(sure, halves)[0] == pytest.approx(0.811278 - 0.5, abs=1e-6)
    assert divergence(sure, sure[::-1])[0] == pytest.approx(1)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be compared"):
        divergence(softmax(0, 2, 3), softmax(0, 3, 3))
