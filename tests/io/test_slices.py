"""Planes along any axis, windows of them, and reading no block more often than needed."""

import numpy as np
import pytest

from rskd.config import ModelSpec
from rskd.io.slices import Slices, across, millimetres
from rskd.scan import Scan

SPEC = ModelSpec(name="any", in_channels=2)
SIZES = {"t": 2, "c": 2, "z": 4, "y": 5, "x": 6}


class Stored:
    """An array that says in which blocks it is stored, and remembers what was read."""

    def __init__(self, data, chunks):
        self.data, self.shape, self.dtype, self.chunks, self.reads = data, data.shape, data.dtype, chunks, []

    def __getitem__(self, place):
        part = self.data[place]
        self.reads.append(part.shape)
        return part


def scan_over(axes, chunks=None):
    data = np.arange(np.prod([SIZES[axis] for axis in axes])).reshape([SIZES[axis] for axis in axes])
    return Scan(Stored(data, chunks), axes)


@pytest.mark.parametrize("plane", ["yx", "zx", "zy"])
@pytest.mark.parametrize("axes", ["tzcyx", "czyx", "zyxc", "xytzc"])
@pytest.mark.parametrize("depth", [1, 2])
def test_windows_of_planes_by_indexing(axes, plane, depth):
    scan = scan_over(axes, [depth] * len(axes))
    slices = Slices(scan, SPEC, plane=plane)
    rows, columns = slice(1, 4), slice(2, 5)
    order = [axes.index(axis) for axis in slices.stack_axes + "c" + plane]
    moved = scan.data.data.transpose(order)
    expected = moved.reshape(-1, *moved.shape[-3:])[..., rows, columns]
    found = list(slices.windows(range(len(slices)), rows, columns))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(slices[len(slices) - 1], moved.reshape(-1, *moved.shape[-3:])[-1])
    np.testing.assert_array_equal(list(slices.windows([1], rows, columns)), expected[1:2])


def test_planes_in_one_block_are_read_together():
    scan = scan_over("zcyx", (2, 1, 5, 6))
    slices = Slices(scan, SPEC)
    list(slices.windows([1, 2, 3], slice(0, 2), slice(0, 3)))
    assert scan.data.reads == [(2, 2, 3), (2, 2, 2, 3)]  # plane 1 alone, planes 2 and 3 at once
    assert slices.depth == 2


@pytest.mark.parametrize("chunks", [None, (1, 1, 2, 4), ((1, 1), (2, 2), (3, 2), (4, 2))])
@pytest.mark.parametrize("room", [1, 100, 1 << 28])
def test_blocks_are_the_plane(monkeypatch, chunks, room):
    monkeypatch.setattr("rskd.io.slices._SLAB", room)
    slices = Slices(scan_over("czyx", chunks), SPEC)
    parts = [block.reshape(2, -1) for block in slices.blocks(3)]
    found = np.sort(np.concatenate(parts, 1), 1)  # every pixel once
    np.testing.assert_array_equal(found, np.sort(slices[3].reshape(2, -1), 1))
    assert (len(parts) == 1) == (room > 1000)


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [
        ((5, 0.7, 0.7), "z"),
        ((0.5, 0.5, 5), "x"),
        ((1, 4, 1), "y"),
        ((1, 1, 1), "z"),
        ((1.02, 1, 1.01), "z"),  # alike
        ((1, 2, 3), "z"),  # 3:2 is squarer than 2:1
        (None, "z"),
    ],
)
def test_the_planes_with_the_squarest_then_finest_pixels(spacing, axis):
    assert across(Scan(np.zeros((9, 9, 9)), "zyx", spacing=spacing)) == axis


def test_a_single_plane_is_never_cut_across():
    assert across(Scan(np.zeros((1, 9, 9)), "zyx", spacing=(1, 1, 5))) == "z"
    assert across(Scan(np.zeros((9, 9)), "yx", spacing=(1, 5))) == "z"


def test_spacing_in_millimetres():
    scan = Scan(np.zeros((2, 3, 4)), "zyx", spacing=(1, 2, 3), units="cm")
    assert millimetres(scan) == {"z": 10, "y": 20, "x": 30}
    assert millimetres(Scan(np.zeros((3, 4)), "yx", spacing=(1, 2))) == {}
    assert millimetres(Scan(np.zeros((3, 4)), "yx", spacing=(1, 2), units="px")) == {}
