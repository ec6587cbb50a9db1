"""Which labels layer is proposed as the mask of an image: only one that nobody could mistake."""

import numpy as np
from napari.layers import Image, Labels

from napari_rskd._data_pages import guess_mask
from napari_rskd._source import MARK


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
