import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from rskd.backend_torch import TorchBackend
from rskd.tiling import SURE, Tiling, Work, cut, predict_tiled, spans

LENGTHS = st.integers(1, 200)
TILES = st.sampled_from([1, 2, 5, 16, 48])
OVERLAPS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9])
TORCH = TorchBackend()


def run(network, image: torch.Tensor, tiling: Tiling, *, classes: int, batch_size: int = 4) -> torch.Tensor:
    canvas = torch.zeros(classes, *image.shape[1:])
    for _ in predict_tiled(network, [(image, canvas)], tiling, batch_size=batch_size):
        pass
    return canvas


@settings(deadline=None)
@given(LENGTHS, TILES, OVERLAPS)
def test_spans_cover_the_axis_with_weights_that_add_up_to_one(length: int, tile: int, overlap: float) -> None:
    total = np.zeros(length)
    covered = np.zeros(length, bool)
    found = spans(length, tile, overlap=overlap)
    for span in found:
        covered[span.inside] = True
        total[span.inside] += span.weights
        assert span.covered.stop - span.covered.start == len(span.weights) == span.inside.stop - span.inside.start
        assert 0 <= span.covered.start < span.covered.stop <= tile
    assert covered.all()
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)
    if length >= tile:
        assert (found[0].start, found[-1].start) == (0, length - tile)
        steps = np.diff([span.start for span in found])
        assert (steps <= max(1, int(tile * (1 - overlap)))).all()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([4, 16, 32]),
    st.sampled_from([(0.0, 1e-6), (0.1, 1e-6), (0.25, 1e-6), (0.5, 1e-6), (0.9, 1e-5)]),  # 0.9: a hundred tiles a pixel
    st.integers(1, 9),
)
def test_an_identity_network_is_reproduced_up_to_the_border(
    height: int, width: int, tile: int, overlap: tuple[float, float], batch_size: int
) -> None:
    image = torch.randn(2, height, width, generator=torch.Generator().manual_seed(height * 71 + width))
    tiling = Tiling.over((height, width), tile=tile, overlap=overlap[0], backend=TORCH)
    result = run(lambda images: images, image, tiling, classes=2, batch_size=batch_size)
    torch.testing.assert_close(result, image, rtol=0, atol=overlap[1])


@pytest.mark.parametrize(("size", "overlap"), [((64, 112), 0.5), ((80, 32), 0.5), ((56, 80), 0.25), ((64, 96), 0.0)])
def test_a_network_that_sees_its_border_agrees_with_monai(size: tuple[int, int], overlap: float) -> None:
    # sizes at which evenly laid tiles lie where MONAI lays them
    tile = 32
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 2, 9, padding=4).eval()  # zeros beyond the tile's border: every position differs
    image = torch.randn(3, *size)
    found = run(network, image, Tiling.over(size, tile=tile, overlap=overlap, backend=TORCH), classes=2)

    offsets = torch.arange(tile) - (tile - 1) / 2
    bell = torch.exp(-(offsets**2) / (2 * (tile / 8) ** 2))
    with torch.no_grad():
        expected = sliding_window_inference(
            image[None], (tile, tile), 1, network, overlap=overlap, roi_weight_map=torch.outer(bell, bell)
        )[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_beyond_its_edges_a_plane_is_mirrored_as_often_as_needed(length: int) -> None:
    plane = torch.arange(length * 2).reshape(1, length, 2)
    (row,), (column,) = spans(length, 16, overlap=0), spans(2, 16, overlap=0)
    padding = [(-span.start, 16 - n + span.start) for span, n in ((row, length), (column, 2))]
    expected = np.pad(plane[0].numpy(), padding, mode="symmetric")
    np.testing.assert_array_equal(cut(plane, row, column, 16)[0], expected)


def test_planes_are_asked_for_one_after_another_and_reported_when_complete() -> None:
    asked = []

    def planes():
        for number in range(3):
            asked.append(number)
            yield torch.full((1, 24, 16), float(number)), torch.zeros(1, 24, 16)

    tiling = Tiling.over((24, 16), tile=16, overlap=0, backend=TORCH)  # two tiles each
    seen = []
    for ran, finished in predict_tiled(lambda images: images, planes(), tiling, batch_size=3):
        seen.append((ran, [canvas.mean().item() for canvas in finished], len(asked)))
    assert seen == [(3, [0.0], 2), (3, [1.0, 2.0], 3)]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([4, 16, 32]), OVERLAPS, st.data())
def test_a_window_is_blended_as_in_the_whole_plane(
    height: int, width: int, tile: int, overlap: float, data: st.DataObject
) -> None:
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    image = torch.randn(1, height, width, generator=torch.Generator().manual_seed(height * 71 + width))
    network = torch.nn.Conv2d(1, 2, 3, padding=1, bias=False)  # sees where its tile ends
    tiling = Tiling.over((height, width), tile=tile, overlap=overlap, backend=TORCH)
    whole = run(network, image, tiling, classes=2)
    part, rows, columns = tiling.touching(slice(top, bottom), slice(left, right))
    block = run(network, image[:, rows, columns], part, classes=2)
    inside = block[:, top - rows.start : bottom - rows.start, left - columns.start : right - columns.start]
    torch.testing.assert_close(inside, whole[:, top:bottom, left:right], rtol=0, atol=1e-6)


def test_empty_tiles_are_not_run_and_say_background() -> None:
    image = torch.zeros(1, 32, 64)
    image[:, :, 32:] = torch.rand(1, 32, 32)
    ran, canvas = [], torch.zeros(2, 32, 64)

    def network(images: torch.Tensor) -> torch.Tensor:
        ran.append(len(images))
        return torch.ones(len(images), 2, 16, 16)

    work = Work(image, canvas, lambda tile: bool((tile == 0).all()))
    tiling = Tiling.over((32, 64), tile=16, overlap=0, backend=TORCH)
    counts = [(count, len(done)) for count, done in predict_tiled(network, [work], tiling, batch_size=3)]
    assert ran == [3, 1]
    assert counts == [(7, 0), (1, 1)]
    assert (canvas[0, :, :32] == 0).all()
    assert (canvas[1, :, :32] == -SURE).all()
    assert (canvas[:, :, 32:] == 1).all()


def test_nothing_is_recorded_for_gradients() -> None:
    network = torch.nn.Conv2d(1, 1, 1)
    result = run(network, torch.zeros(1, 20, 20), Tiling.over((20, 20), tile=16, overlap=0, backend=TORCH), classes=1)
    assert not result.requires_grad
    assert torch.is_grad_enabled()
