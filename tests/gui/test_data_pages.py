"""Which labels layer is proposed as the mask of an image, and what of layers is written down to learn from."""

import numpy as np
import pytest
from napari.layers import Image, Labels

from napari_rskd._data import pair_of, write_pairs
from napari_rskd._data_pages import guess_mask
from napari_rskd._source import MARK
from rskd.io import read_scan


def image(name, shape=(8, 8)):
    return Image(np.zeros(shape), name=name)


def labels(name, shape=(8, 8), **metadata):
    return Labels(np.zeros(shape, np.uint8), name=name, metadata=metadata)


def test_the_only_pair_of_a_shape_belongs_together():
    picture, mask = image("a"), labels("b")
    assert guess_mask(picture, [picture, image("c", (9, 9))], [mask, labels("d", (9, 9))]) is mask


def test_names_decide_among_several():
    images = [image(f"scan{i}") for i in range(3)]
    masks = [labels(f"scan{i} mask") for i in range(3)]
    assert [guess_mask(picture, images, masks) for picture in images] == masks


def test_nothing_is_guessed_where_there_is_doubt():
    images, masks = [image("a1"), image("b2")], [labels("x"), labels("y")]
    assert [guess_mask(picture, images, masks) for picture in images] == [None, None]


def test_what_rskd_has_made_is_not_taken_for_the_truth():
    picture = image("a")
    assert guess_mask(picture, [picture], [labels("Vessel (student)", **{MARK: {}})]) is None


def test_pixels_have_the_size_that_they_have_in_the_world(tmp_path):
    picture = Image(np.zeros((4, 8, 8), np.uint8), name="a", affine=np.diag([3, 2, 1, 1]), units="mm")
    options = write_pairs([pair_of(picture, None)], tmp_path)
    scan = read_scan(next(options.images.iterdir()))
    assert scan.units == "mm"
    assert scan.spacing == pytest.approx((3, 2, 1))


def test_pyramids_are_learned_at_full_resolution(tmp_path):
    levels = [np.arange(64 * 64, dtype=np.uint16).reshape(64, 64), np.zeros((32, 32), np.uint16)]
    picture = Image(levels, name="a", multiscale=True)
    mask = Labels([(level > 9).astype(np.uint8) for level in levels], name="b", multiscale=True)
    options = write_pairs([pair_of(picture, mask)], tmp_path)
    np.testing.assert_array_equal(read_scan(next(options.images.iterdir())).data, levels[0])
    np.testing.assert_array_equal(read_scan(next(options.masks.iterdir())).data, levels[0] > 9)
