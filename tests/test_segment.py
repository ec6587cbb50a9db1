import math
from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rskd.backend_torch import TorchBackend
from rskd.box import Room
from rskd.config import BACKGROUND, ClassInfo, ModelSpec, SegmentOptions
from rskd.errors import ParameterError, ResourceError
from rskd.events import Message, Progress, drain
from rskd.models.normalise import normalise
from rskd.plan import Plan
from rskd.recipe import Setting
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


# ------------------------------------------------------------------------------------- axes, sizes, regions, emptiness


def isotropic(axis: str) -> Scan:
    spacing = {letter: 1.0 if letter != axis else 4.0 for letter in "zyx"}
    return Scan(noise(6, 40, 50), "zyx", spacing=tuple(spacing[letter] for letter in "zyx"), units="mm")


def logits_along(axis: str, data: np.ndarray) -> np.ndarray:
    """The softmax of `Blurry` on every plane across an axis of a volume that one tile covers."""
    model, place = Blurry().eval(), "zyx".index(axis)
    stack = np.moveaxis(data, place, 0)
    planes = np.stack([normalise(plane[None], model.spec) for plane in stack])
    padding = [(0, 0), (0, 0), *((((64 - n) // 2 + (64 - n) % 2), (64 - n) // 2) for n in planes.shape[2:])]
    padded = np.pad(planes, padding, mode="symmetric")
    with torch.no_grad():
        values = model(torch.from_numpy(padded)).softmax(1).numpy()
    cut = tuple(slice(before, before + n) for (before, _), n in zip(padding[2:], planes.shape[2:], strict=True))
    return np.moveaxis(values[(slice(None), slice(None), *cut)].swapaxes(0, 1), 1, place + 1)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_planes_are_cut_along_the_axis_that_is_asked_for_or_fits_best(axis: str) -> None:
    scan = isotropic(axis)
    expected = logits_along(axis, scan.data)
    for asked in (axis, "auto"):
        result = drain(segment(Blurry(), scan, SegmentOptions(tile=64, axis=asked, probabilities=True)))
        assert result.probabilities is not None
        np.testing.assert_allclose(result.probabilities.data, expected, rtol=0, atol=1e-5)
        assert (result.labels.axes, result.labels.data.shape, result.recipe.axis) == ("zyx", scan.data.shape, axis)
    messages = [event.text for event in segment(Blurry(), scan) if isinstance(event, Message)]
    assert len(messages) == (axis != "z")


@pytest.mark.parametrize("probabilities", [False, True])
def test_the_mean_over_three_axes(probabilities: bool) -> None:
    scan = isotropic("x")
    expected = np.mean([logits_along(axis, scan.data) for axis in "zyx"], 0)
    result = drain(segment(Blurry(), scan, SegmentOptions(tile=64, axis="all", probabilities=probabilities)))
    if probabilities:
        assert result.probabilities is not None
        np.testing.assert_allclose(result.probabilities.data, expected, rtol=0, atol=1e-5)
    assert_labels(result.labels.data, expected)


def assert_labels(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """They are those of the largest probability, wherever the next one is not as large within rounding."""
    second, first = np.sort(probabilities, axis=0)[-2:]
    clear = first - second > 2e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(labels[clear], probabilities.argmax(0)[clear])


def test_an_axis_needs_a_volume() -> None:
    with pytest.raises(ParameterError, match="axis='x' needs a volume"):
        drain(segment(Blurry(), Scan(noise(20, 20), "yx"), SegmentOptions(axis="x")))


class Chunked:
    """Data of any size that are read in windows and stored in blocks; it remembers the largest read."""

    def __init__(self, data: np.ndarray, chunks: object) -> None:
        self.data, self.chunks, self.largest, self.reads = data, chunks, 0, 0
        self.shape, self.dtype = data.shape, data.dtype

    def __getitem__(self, place: object) -> np.ndarray:
        part = self.data[place]
        self.largest, self.reads = max(self.largest, part.size), self.reads + 1
        return part


@pytest.mark.parametrize("axis", ["z", "y", "all"])
@pytest.mark.parametrize("chunks", [None, (2, 16, 64), ((2, 1), (30, 30, 30), (70, 40))])
@pytest.mark.parametrize("kind", ["zscore", "percentile"])
def test_a_result_does_not_depend_on_regions_and_chunks(
    monkeypatch: pytest.MonkeyPatch, axis: str, chunks: object, kind: str
) -> None:
    data = noise(3, 90, 110)
    options = SegmentOptions(axis=axis, probabilities=True)
    expected = drain(segment(Blurry(normalisation=kind), Scan(data, "zyx"), options))
    monkeypatch.setattr("rskd.segment.free_memory", lambda device: 400_000)  # for the plan, not for the result
    monkeypatch.setattr("rskd.segment._room_for", lambda plan: Room.of(plan.shape, plan.spec, probabilities=True))
    lazy = Chunked(data, chunks)
    small = options.model_copy(update={"region": 48})
    found = drain(segment(Blurry(normalisation=kind), Scan(lazy, "zyx"), small))
    assert lazy.largest < data.size / 2
    assert expected.probabilities is not None
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities.data, expected.probabilities.data, rtol=0, atol=1e-6)
    assert_labels(found.labels.data, np.asarray(expected.probabilities.data))


@pytest.mark.parametrize("frame", [None, 150])
@pytest.mark.parametrize("spacing", [None, 0.7, 1.6])
def test_a_resampled_result_does_not_depend_on_regions(
    monkeypatch: pytest.MonkeyPatch, frame: int | None, spacing: float | None
) -> None:
    scan = Scan(noise(90, 70), "yx", spacing=(1000, 1500), units="um")
    model = Blurry(frame=frame, spacing=spacing)
    whole = drain(segment(model, scan, SegmentOptions(probabilities=True)))
    monkeypatch.setattr("rskd.segment.free_memory", lambda device: 400_000)
    monkeypatch.setattr("rskd.segment._room_for", lambda plan: Room.of(plan.shape, plan.spec, probabilities=True))
    parts = drain(segment(model, scan, SegmentOptions(probabilities=True, region=32)))
    assert whole.probabilities is not None
    assert parts.probabilities is not None
    np.testing.assert_allclose(parts.probabilities.data, whole.probabilities.data, rtol=0, atol=1e-5)


def test_pixels_are_brought_to_the_size_of_the_training_and_the_result_back() -> None:
    seen = []

    class Watching(Identity):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images

    y, x = np.mgrid[:60, :40]
    data = np.stack([y + x, x - y]).astype(np.float32)
    scan = Scan(data, "cyx", spacing=(1.0, 0.5), units="mm")
    model = Watching(spacing=0.5, image_size=160)
    events: list[object] = []
    result = collect(segment(model, scan, SegmentOptions(probabilities=True)), events)
    # twice as many rows, in the middle of one tile of 160 pixels
    expected = torch.from_numpy(normalise(data, model.spec))[None]
    expected = F.interpolate(expected, (120, 40), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen[0][:, :, 20:140, 60:100], expected, rtol=0, atol=1e-5)
    assert [event.text for event in events if isinstance(event, Message)] == [
        "Planes are resampled from 60 x 40 to 120 x 40 pixels of 0.5 mm, as in the training."
    ]
    assert (result.recipe.spacing, result.labels.spacing, result.labels.data.shape) == (0.5, (1.0, 0.5), (60, 40))
    back = F.interpolate(expected.softmax(1), (60, 40), mode="bilinear", antialias=True)[0]
    np.testing.assert_allclose(result.probabilities.data, back, atol=1e-5)

    seen.clear()
    plain = drain(segment(model, scan, SegmentOptions(resample=False)))
    torch.testing.assert_close(seen[0][:, :, 50:110, 60:100], torch.from_numpy(normalise(data, model.spec))[None])
    assert plain.recipe.spacing is None


def collect(task, events: list[object]):
    """Run a task to its end; returns its result and fills in its events."""
    while True:
        try:
            events.append(next(task))
        except StopIteration as end:
            return end.value


def test_pixels_of_another_order_of_magnitude_are_refused() -> None:
    scan = Scan(noise(20, 20), "yx", spacing=(5, 5), units="um")
    with pytest.raises(ParameterError, match=r"A pixel of the image is 0\.005 mm wide, net was trained at 0\.5 mm"):
        drain(segment(Blurry(spacing=0.5), scan))
    drain(segment(Blurry(spacing=0.5), scan, SegmentOptions(resample=False)))
    drain(segment(Blurry(spacing=0.5), Scan(noise(20, 20), "yx", spacing=(5, 5))))  # no unit: nothing is known


def test_a_level_lies_where_the_picture_does() -> None:
    data = noise(40, 60)
    low = data.reshape(20, 2, 20, 3).mean((1, 3))
    affine = np.array([[0, 2.0, 7], [1.0, 0, 5], [0, 0, 1]])
    scan = Scan(data, "yx", spacing=(1, 2), units="mm", affine=affine, pyramid=(low,))
    result = drain(segment(Blurry(), scan, SegmentOptions(level=1)))
    direct = drain(segment(Blurry(), Scan(low, "yx")))
    np.testing.assert_array_equal(result.labels.data, direct.labels.data)
    assert (result.labels.spacing, result.recipe.level) == ((2.0, 6.0), 1)
    np.testing.assert_allclose(result.labels.affine @ [0, 0, 1], affine @ [0.5, 1, 1])  # the middle of 2 x 3 pixels
    np.testing.assert_allclose(result.labels.affine @ [3, 4, 1], affine @ [6.5, 13, 1])
    with pytest.raises(ParameterError, match="level=2 does not exist: the image is stored at 2 resolutions"):
        drain(segment(Blurry(), scan, SegmentOptions(level=2)))


@pytest.mark.parametrize(
    ("options", "empty"),
    [({"skip_flat": 0}, "constant"), ({"skip_flat": 3}, "flat"), ({"skip_dark": 4}, "flat"), ({"skip_dark": 0.5}, "")],
)
def test_empty_tiles_are_background_and_not_run(options: dict[str, float], empty: str) -> None:
    ran = []

    class Watching(Blurry):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            ran.extend(images)
            return super().forward(images)

    data = noise(64, 160)
    data[:, 64:] = np.random.default_rng(1).uniform(1, 4, (64, 96))  # nearly flat and dark
    if empty == "constant":
        data[:, 64:] = 3.5
    scan = Scan(data, "yx")
    plain = drain(segment(Watching(), scan, SegmentOptions(overlap=0)))
    everything = len(ran)
    ran.clear()
    events: list[object] = []
    result = collect(segment(Watching(), scan, SegmentOptions(overlap=0, **options)), events)
    assert everything == 10
    assert len(ran) == (4 if empty else 10)
    assert events[-1] == Progress(10, 10, "tiles")
    np.testing.assert_array_equal(result.labels.data[:, :64], plain.labels.data[:, :64])
    if empty:
        assert not result.labels.data[:, 64:].any()
    assert (result.recipe.skip_flat, result.recipe.skip_dark) == (options.get("skip_flat"), options.get("skip_dark"))


class Huge:
    """Says that it is large, and cannot be read."""

    dtype = np.dtype(np.uint8)

    def __init__(self, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
        self.shape, self.chunks = shape, chunks


@pytest.mark.parametrize("axis", ["z", "y", "all"])
@pytest.mark.parametrize("count", [2, 20])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("depth", [1, 64, 1000])
def test_regions_fit_into_memory(axis: str, count: int, probabilities: bool, depth: int) -> None:
    scan = Scan(Huge((7, 1000, 6000, 5000), (1, depth, 64, 64)), "tzyx")
    plan = Plan.of(scan, spec(image_size=64, count=count), SegmentOptions(axis=axis, probabilities=probabilities))
    for multiple in (None, {"t": 1, "z": 64, "y": 64, "x": 64}):
        steps = plan.steps(memory=2**29, tile=64, multiple=multiple)
        voxels = math.prod(min(steps[letter], n) for letter, n in zip("tzyx", scan.data.shape, strict=True))
        kept = probabilities or axis == "all"
        assert voxels * (1 + 4 * count * kept) <= 2**29
        plane = "".join(letter for letter in "zyx" if letter != axis)[-2:]
        rows, columns = (steps[letter] + 2 * 64 for letter in plane)
        assert rows * columns * plan.bytes_per_pixel <= 2**29


def test_the_side_of_a_box_by_hand() -> None:
    options = SegmentOptions(axis="all", region=8192)
    plan = Plan.of(Scan(Huge((900, 900, 900), (64, 64, 64)), "zyx"), spec(image_size=64, count=3), options)
    assert plan.bytes_per_voxel == 1 + 4 * 3
    assert plan.steps(memory=13 * 300**3, tile=64) == {"z": 300, "y": 300, "x": 300}
    assert plan.steps(memory=13 * 300**3, tile=64, multiple={"z": 64, "y": 64, "x": 64})["z"] == 256


def test_a_result_that_the_system_gives_no_memory_for() -> None:
    with pytest.raises(ResourceError, match=r"does not hold the result of 1099511627776 x 1048576 voxels: close"):
        Room.of((2**40, 2**20), spec(), probabilities=False)


# -------------------------------------------------------------------------------------------------------- out of memory


class Tight(Blurry):
    """Has memory for few tiles, small tiles, or none at all on the device where it is."""

    def __init__(self, *, batch: int = 256, tile: int = 8192, device: str = "cpu") -> None:
        super().__init__()
        self.batch, self.tile, self.calls = batch, tile, 0
        self.backend = FakeBackend(device)

    def to(self, device: str) -> "Tight":
        self.backend = FakeBackend(device)
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > 1 and (len(images) > self.batch or images.shape[-1] > self.tile):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB.")
        if self.backend.device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(images)


class FakeBackend(TorchBackend):
    """Tensors on the CPU that are said to be elsewhere."""

    def __init__(self, name: str) -> None:
        super().__init__("cpu")
        self.name = name

    @property
    def device(self) -> str:
        return self.name


@pytest.mark.parametrize(
    ("tight", "final", "steps"),
    [
        ({"batch": 2}, {"batch_size": 2, "tile": 64, "device": "cpu"}, 1),
        ({"device": "mps"}, {"batch_size": 1, "tile": 64, "device": "cpu"}, 3),
        ({"tile": 32}, {"batch_size": 1, "tile": 32, "device": "cpu"}, 3),
        ({"tile": 16, "device": "mps"}, {"batch_size": 1, "tile": 16, "device": "cpu"}, 5),
    ],
)
def test_out_of_memory_makes_the_batch_smaller_then_the_device_the_cpu_then_the_tile_smaller(
    tight: dict[str, object], final: dict[str, object], steps: int
) -> None:
    scan = Scan(noise(2, 90, 120), "zyx")
    model, events = Tight(**tight), []
    options = SegmentOptions(tile=64, batch_size=4, probabilities=True)
    result = collect(segment(model, scan, options), events)
    recipe = result.recipe
    assert {field: getattr(recipe, field) for field in final} == final
    said = [event.text for event in events if isinstance(event, Message) and event.warning]
    assert len(said) == steps
    assert tuple(said) == recipe.setbacks
    order = [
        next(i for i, word in enumerate(("at a time", "on the CPU", "beginning again")) if word in t) for t in said
    ]
    assert order == sorted(order)
    assert events[-1].done == events[-1].total
    assert model.backend.device == tight.get("device", "cpu")  # it is given back where it was
    again = options.model_copy(update={"tile": recipe.tile, "batch_size": recipe.batch_size})
    expected = drain(segment(Blurry(), scan, again))
    np.testing.assert_allclose(result.probabilities.data, expected.probabilities.data, rtol=0, atol=1e-5)
    assert recipe.weights == expected.recipe.weights


def test_when_nothing_can_be_made_smaller_it_is_said() -> None:
    model = Tight(tile=8)
    with pytest.raises(ResourceError, match=r"does not hold 1 tile of 16 x 16 pixels, and there is nothing left"):
        drain(segment(model, Scan(noise(200, 200), "yx")))


def test_other_errors_of_the_network_are_its_own() -> None:
    class Broken(Blurry):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        drain(segment(Broken(), Scan(noise(50, 50), "yx")))


def test_a_result_larger_than_the_memory_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rskd.segment.free_memory", lambda device: 10_000)
    with pytest.raises(ResourceError, match="have the labels written to an OME-Zarr"):
        drain(segment(Blurry(), Scan(noise(200, 200), "yx")))


@pytest.mark.parametrize(
    ("free", "device", "expected"), [(2**40, "cpu", 4), (2**40, "mps", 32), (2**28, "mps", 2), (1, "cpu", 1)]
)
def test_the_batch_follows_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, device: str, expected: int
) -> None:
    monkeypatch.setattr("rskd.recipe.free_memory", lambda device: free)
    setting = Setting.chosen(SegmentOptions(), spec(image_size=256), device)
    assert (setting.tile, setting.batch_size) == (256, expected)


def test_the_recipe_names_the_network() -> None:
    scan = Scan(noise(40, 40), "yx")
    first, same = (drain(segment(Blurry(), scan)).recipe for _ in range(2))
    changed = Blurry()
    with torch.no_grad():
        changed.weight[0, 0, 0, 0] += 1
    other = drain(segment(changed, scan)).recipe
    assert first == same
    assert first.weights != other.weights
    assert len(first.weights) == 64
    assert first.version == version("napari-rskd")
    assert (first.tile, first.overlap, first.batch_size, first.device, first.setbacks) == (32, 0.25, 4, "cpu", ())
