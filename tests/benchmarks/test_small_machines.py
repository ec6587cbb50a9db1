"""What the stored figures of precisions say of themselves; that the tables are theirs is in test_docs.py."""

import json

import pytest

from benchmarks.accuracy import exports


def test_the_loss_of_a_precision_is_the_difference_of_its_scores():
    value = json.loads(exports.RESULTS.read_text())
    for precision in exports.PRECISIONS:
        dice = value[precision]["dice"]
        assert dice["lost"] == pytest.approx(dice["original"] - dice["exported"])
