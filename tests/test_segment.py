import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rskd.config import BACKGROUND, ClassInfo, ModelSpec, SegmentOptions
from rskd.errors import ParameterError
from rskd.events import Progress, drain
from rskd.models.normalise import normalise
from rskd.scan import Scan
from rskd.segment import segment


def spec(**fields: object) -> ModelSpec:
    names = [BACKGROUND, *(ClassInfo(name=f"class {k}") for k in range(1, int(fields.pop("count", 2))))]
    return ModelSpec.model_validate({"name": "net", "image_size": 32, "classes": names, **fields})


class Identity(nn.Module):
    """Its logits are its input."""

    def __init__(self, count: int = 2, **fields: object) -> None:
        super().__init__()
        self.spec = spec(in_channels=count, count=count, **fields)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


class Blurry(nn.Module):
    """A convolution with dropout, as a network in training has."""

    def __init__(self, count: int = 1, **fields: object) -> None:
        super().__init__()
        self.spec = spec(in_channels=count, count=3, **fields)
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, count, 5, 5, generator=generator))
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.dropout(F.conv2d(images, self.weight, padding=2))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def probabilities_of(scan: Scan, model: nn.Module, **options: object) -> np.ndarray:
    result = drain(segment(model, scan, SegmentOptions(probabilities=True, **options)))
    assert result.probabilities is not None
    return np.asarray(result.probabilities.data)


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (7, 5), (32, 32), (33, 100), (150, 31)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_the_softmax_of_an_identity_network_comes_back(size: tuple[int, int], overlap: float) -> None:
    model = Identity(3)
    data = noise(3, *size)
    logits = normalise(data, model.spec).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(0)
    found = drain(segment(model, Scan(data, "cyx"), SegmentOptions(overlap=overlap, probabilities=True)))
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities.data, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.labels.data, logits.argmax(0))
    assert found.labels.data.dtype == np.uint8


@pytest.mark.parametrize("batch_size", [1, 2, 5, 256])
def test_the_result_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    scan = Scan(noise(3, 50, 70), "zyx")
    expected = probabilities_of(scan, Blurry(), batch_size=4)
    np.testing.assert_allclose(probabilities_of(scan, Blurry(), batch_size=batch_size), expected, rtol=0, atol=1e-6)


def test_labels_are_the_same_with_and_without_probabilities() -> None:
    scan = Scan(noise(100, 90), "yx")
    alone = drain(segment(Blurry(), scan))
    together = drain(segment(Blurry(), scan, SegmentOptions(probabilities=True)))
    assert alone.probabilities is None
    assert together.probabilities is not None
    np.testing.assert_array_equal(alone.labels.data, together.labels.data)
    np.testing.assert_array_equal(np.argmax(together.probabilities.data, 0), alone.labels.data)


@pytest.mark.parametrize("axes", ["tzcyx", "czyx", "zyxc", "xytc", "tcyx"])
def test_planes_along_every_axis(axes: str) -> None:
    sizes = {"t": 2, "z": 3, "c": 2, "y": 20, "x": 40}
    data = noise(*(sizes[axis] for axis in axes))
    spacing = tuple(float(sizes[axis]) for axis in axes if axis in "zyx")
    scan = Scan(data, axes, spacing=spacing, units="mm", affine=np.diag([*spacing, 1.0]))
    result = drain(segment(Identity(2), scan, SegmentOptions(probabilities=True)))

    rest = axes.replace("c", "")
    assert (result.labels.axes, result.labels.spacing, result.labels.units) == (rest, spacing, "mm")
    assert result.labels.affine is scan.affine
    assert result.probabilities is not None
    assert result.probabilities.axes == "c" + rest
    spatial = [axes.index(axis) for axis in "yx"]
    standard = (data - data.mean(tuple(spatial), keepdims=True)) / data.std(tuple(spatial), keepdims=True)
    channels = np.moveaxis(standard, axes.index("c"), 0)
    np.testing.assert_array_equal(result.labels.data, channels.argmax(0))
    np.testing.assert_allclose(
        result.probabilities.data, torch.from_numpy(channels).softmax(0).numpy(), rtol=0, atol=1e-5
    )


def test_a_frame_is_worked_at_its_size_and_the_result_comes_back_at_the_images() -> None:
    sizes = []

    class Watching(Identity):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(images.shape))
            return images

    y, x = np.mgrid[:200, :100]
    left = 100.0 * (x < 50) + y / 50
    scan = Scan(np.stack([-left, left]).astype(np.float32), "cyx", spacing=(0.1, 0.1))
    result = drain(segment(Watching(frame=64), scan, SegmentOptions(probabilities=True, overlap=0)))
    assert sizes == [(2, 2, 32, 32)]  # 64 x 32 pixels, two tiles
    assert result.labels.data.shape == (200, 100)
    assert result.labels.spacing == (0.1, 0.1)
    np.testing.assert_array_equal(result.labels.data[:, [0, 20, 47, 52, 70, 99]], np.tile([1, 1, 1, 0, 0, 0], (200, 1)))
    assert result.probabilities is not None
    np.testing.assert_allclose(result.probabilities.data.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("shape", [(30, 64), (64, 30)])
def test_a_frame_of_the_images_own_size_changes_nothing(shape: tuple[int, int]) -> None:
    scan = Scan(noise(*shape), "yx")
    framed, plain = (probabilities_of(scan, Blurry(frame=frame)) for frame in (64, None))
    np.testing.assert_array_equal(framed, plain)


def test_progress_counts_tiles_and_closing_cancels() -> None:
    scan = Scan(noise(2, 80, 32), "zyx")  # three tiles each at an overlap of a quarter
    events = list(segment(Blurry(), scan, SegmentOptions(batch_size=4)))
    assert events == [Progress(4, 6, "tiles"), Progress(6, 6, "tiles")]

    model = Blurry().train()
    task = segment(model, scan, SegmentOptions(batch_size=1))
    next(task)
    assert not model.dropout.training
    task.close()
    assert model.training
    assert model.dropout.training


def test_a_network_in_training_is_used_without_dropout_and_given_back_as_it_was() -> None:
    scan = Scan(noise(40, 40), "yx")
    model = Blurry().train()
    model.dropout.eval()
    expected = probabilities_of(scan, Blurry().eval())
    np.testing.assert_array_equal(probabilities_of(scan, model), expected)
    assert model.training
    assert not model.dropout.training


def test_lazy_data_are_loaded_plane_by_plane() -> None:
    class Lazy:
        shape, dtype = (3, 20, 20), np.dtype(np.float32)
        largest = 0

        def __getitem__(self, place: tuple[object, ...]) -> np.ndarray:
            part = noise(*self.shape)[place]
            Lazy.largest = max(Lazy.largest, part.size)
            return part

    lazy = drain(segment(Blurry(), Scan(Lazy(), "zyx")))
    whole = drain(segment(Blurry(), Scan(noise(3, 20, 20), "zyx")))
    np.testing.assert_array_equal(lazy.labels.data, whole.labels.data)
    assert Lazy.largest == 400


@pytest.mark.parametrize(
    ("scan", "channels"),
    [
        (Scan(noise(20, 20, 4), "yxc", channels=("red", "green", "blue", "alpha")), 3),
        (Scan(noise(20, 20, 4), "yxc"), 3),
        (Scan(noise(20, 20, 2), "yxc", channels=("grey", "alpha")), 1),
    ],
)
def test_transparency_is_left_out(scan: Scan, channels: int) -> None:
    opaque = Scan(scan.data[..., :channels], "yxc")
    found, expected = (probabilities_of(s, Blurry(channels)) for s in (scan, opaque))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("scan", "model", "words"),
    [
        (
            Scan(noise(20, 20), "yx"),
            Identity(3, channels=("red", "green", "blue")),
            r"1 channel, net was made for 3 channels \(red",
        ),
        (Scan(noise(20, 20, 3), "yxc"), Blurry(1), "3 channels, net was made for 1 channel:"),
        (Scan(noise(20, 20, 4), "yxc", channels=("a", "b", "c", "d")), Identity(3), "4 channels"),
        (Scan(noise(0, 20), "yx"), Blurry(), "no intensities"),
        (Scan(noise(20, 20).astype(complex), "yx"), Blurry(), "complex128 has no intensities"),
    ],
)
def test_images_that_do_not_suit_the_network_are_refused(scan: Scan, model: nn.Module, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        drain(segment(model, scan))


def test_a_tile_must_be_a_multiple_of_the_patch() -> None:
    with pytest.raises(ParameterError, match=r"tile=40 is no multiple of the patch size 16: use 32\."):
        drain(segment(Blurry(), Scan(noise(20, 20), "yx"), SegmentOptions(tile=40)))


def test_more_classes_than_a_byte_holds() -> None:
    class Last(nn.Module):
        spec = spec(count=300)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.arange(300.0)[:, None, None].expand(len(images), 300, *images.shape[2:])

    labels = drain(segment(Last(), Scan(noise(20, 20), "yx"))).labels.data
    assert labels.dtype == np.uint16
    assert (labels == 299).all()


class LargeTensors(TorchDispatchMode):
    """Remembers every tensor memory of at least `limit` bytes that any operation touches."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.found = limit, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.limit:
                self.found.add(tensor.untyped_storage().data_ptr())
        return result


@pytest.mark.parametrize("probabilities", [False, True])
def test_memory_is_the_image_and_one_map(probabilities: bool) -> None:
    size = 512
    options = SegmentOptions(batch_size=1, probabilities=probabilities)
    with LargeTensors(size * size * 4) as large:  # half of the map
        drain(segment(Identity(2), Scan(noise(2, size, size), "cyx"), options))
    assert len(large.found) == 2
