"""Measurements against SimpleITK, scikit-image, and by hand."""

import csv
from itertools import product

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import regionprops

from rskd.errors import DataError
from rskd.measure import columns, features, measure, write_table
from rskd.scan import Scan
from rskd.voxels import Grid

NAMES = ["liver", "spleen", "tumour"]


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


def oblique(seed: int = 0, shape: tuple[int, ...] = (14, 22, 26), spacing: tuple[float, ...] = (3.7, 0.61, 0.83)):
    """Labels and intensities on a turned grid with three different spacings (z, y, x)."""
    generator = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(generator.normal(size=shape), 1.5) for _ in range(4)]
    labels = np.argmax(fields, axis=0).astype(np.uint8)
    affine = np.eye(4)
    affine[:3, :3] = rotation(seed) @ np.diag(spacing)
    affine[:3, 3] = generator.normal(size=3) * 100
    scan = Scan(labels, "zyx", spacing=spacing, units="mm", affine=affine)
    return scan, scan.like(generator.normal(40, 9, shape).astype(np.float32), "zyx")


def to_itk(scan: Scan):
    """Return the scan as SimpleITK holds it, in the same world (its x, y, z are our z, y, x, reversed)."""
    image = sitk.GetImageFromArray(scan.data)
    xyz = scan.affine[:3][::-1]  # rows x, y, z
    columns_xyz = xyz[:, :3][:, ::-1]
    spacing = np.linalg.norm(columns_xyz, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((columns_xyz / spacing).ravel().tolist())
    image.SetOrigin(xyz[:, 3].tolist())
    return image


@pytest.mark.parametrize("seed", range(3))
def test_volumes_centroids_and_boxes_on_an_oblique_grid_against_simpleitk(seed: int) -> None:
    labels, image = oblique(seed)
    rows = measure(labels, image, names=NAMES)
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(to_itk(labels))
    intensities = sitk.LabelStatisticsImageFilter()
    intensities.Execute(to_itk(image), to_itk(labels))
    assert [row.label for row in rows] == [1, 2, 3]
    for row in rows:
        label = row.label
        assert row.unit == "ml"
        assert row.place_unit == "mm"
        assert row.voxels == statistics.GetNumberOfPixels(label)
        assert row.size == pytest.approx(statistics.GetPhysicalSize(label) / 1000, rel=1e-9)
        np.testing.assert_allclose(row.centroid[::-1], statistics.GetCentroid(label), rtol=0, atol=1e-6)
        (values,) = row.intensities
        assert values.mean == pytest.approx(intensities.GetMean(label), rel=1e-6)
        share = (row.voxels - 1) / row.voxels  # ITK divides by n - 1
        assert values.sd == pytest.approx(np.sqrt(intensities.GetVariance(label) * share), rel=1e-5)
        assert (values.minimum, values.maximum) == (intensities.GetMinimum(label), intensities.GetMaximum(label))


def test_the_box_in_the_world_reaches_to_the_corners_of_the_voxels_as_simpleitk_places_them() -> None:
    labels, _ = oblique(4, shape=(5, 6, 7))
    image = to_itk(labels)
    for row in measure(labels, names=NAMES):
        corners = [
            image.TransformContinuousIndexToPhysicalPoint(
                [float(i + h) for i, h in zip(index[::-1], half, strict=True)]
            )
            for index in np.argwhere(labels.data == row.label)
            for half in product((-0.5, 0.5), repeat=3)
        ]
        np.testing.assert_allclose(row.lower[::-1], np.min(corners, 0), atol=1e-9)
        np.testing.assert_allclose(row.upper[::-1], np.max(corners, 0), atol=1e-9)


def test_a_picture_against_scikit_image() -> None:
    data = oblique()[0].data[3]
    image = np.random.default_rng(0).normal(size=(*data.shape, 3))
    rows = measure(
        Scan(data, "yx", spacing=(0.4, 0.25), units="mm"), Scan(image, "yxc", channels=("r", "g", "b")), names=NAMES
    )
    for row, region in zip(rows, regionprops(data, image), strict=True):
        assert (row.unit, row.place_unit) == ("mm2", "mm")
        assert row.size == pytest.approx(region.area * 0.1, rel=1e-12)
        np.testing.assert_allclose(row.centroid, np.array(region.centroid) * (0.4, 0.25))
        assert row.components == ndimage.label(data == row.label, np.ones((3, 3)))[1]
        np.testing.assert_allclose([v.mean for v in row.intensities], region.intensity_mean)
        assert [v.channel for v in row.intensities] == ["r", "g", "b"]


def test_by_hand() -> None:
    data = np.zeros((2, 3, 4), np.uint8)
    data[0, 1, 1:3] = data[1, 1, 1] = 1
    data[1, 2, 3] = 2
    values = np.arange(24.0).reshape(2, 3, 4)
    values[1, 2, 3] = np.nan
    labels = Scan(data, "zyx", spacing=(5.0, 2.0, 1.0), units="mm")
    first, second, third = measure(labels, labels.like(values, "zyx"), names=NAMES)
    assert (first.voxels, first.components) == (3, 1)
    assert first.size == pytest.approx(0.03)  # 3 · 10 mm³
    np.testing.assert_allclose(first.centroid, (5 / 3, 2, 4 / 3))
    assert (first.lower, first.upper) == ((-2.5, 1.0, 0.5), (7.5, 3.0, 2.5))
    (found,) = first.intensities
    assert (found.mean, found.minimum, found.maximum) == (pytest.approx((5 + 6 + 17) / 3), 5, 17)
    assert found.sd == pytest.approx(np.std([5, 6, 17]))
    assert (second.voxels, second.intensities) == (1, ())  # nothing there is a number
    assert (third.name, third.voxels, third.size, third.unit, third.centroid) == ("tumour", 0, 0, "ml", ())


@pytest.mark.parametrize(
    ("scan", "unit", "size", "place_unit"),
    [
        (Scan(np.ones((2, 3, 4), int), "zyx"), "voxels", 24, "voxels"),
        (Scan(np.ones((3, 4), int), "yx"), "pixels", 12, "voxels"),
        (Scan(np.ones((3, 4), int), "yx", spacing=(2.0, 3.0)), "pixels", 12, "voxels"),
        (Scan(np.ones((3, 4), int), "yx", spacing=(0.5, 0.5), units="um"), "um2", 3, "um"),
        (Scan(np.ones((1, 3, 4), int), "zyx", spacing=(500.0, 500.0, 500.0), units="nm"), "um3", 1.5, "nm"),
        (Scan(np.ones((1, 3, 4), int), "zyx", spacing=(1.0, 1.0, 1.0), units="cm"), "ml", 12, "cm"),
        (
            Scan(np.ones((1, 3, 4), int), "zyx", affine=np.diag([10.0, -10, 10, 1]), anatomical=True),
            "ml",
            12,
            "mm",
        ),
    ],
)
def test_units(scan: Scan, unit: str, size: float, place_unit: str) -> None:
    (row,) = measure(scan)
    assert (row.unit, row.place_unit, row.name) == (unit, place_unit, "label 1")
    assert row.size == pytest.approx(size)


def test_slices_add_up_to_the_volume() -> None:
    labels, image = oblique(2)
    rows = measure(labels, image, names=NAMES, slices=True)
    area = Grid.of(labels).size("yx")
    assert area == (pytest.approx(0.61 * 0.83), "mm2")
    for label in (1, 2, 3):
        whole, *slices = [row for row in rows if row.label == label]
        assert whole.plane is None
        assert [row.plane for row in slices] == np.flatnonzero((labels.data == label).any((1, 2))).tolist()
        assert sum(row.size for row in slices) * 3.7 / 1000 == pytest.approx(whole.size)
        weights = [row.voxels for row in slices]
        np.testing.assert_allclose(
            np.average([row.centroid for row in slices], axis=0, weights=weights), whole.centroid
        )
        np.testing.assert_allclose(np.min([row.lower for row in slices], 0), whole.lower)
        means = [row.intensities[0].mean for row in slices]
        assert np.average(means, weights=weights) == pytest.approx(whole.intensities[0].mean)


@settings(max_examples=40, deadline=None)
@given(axes=st.permutations("tzyxc"), seed=st.integers(0, 99))
def test_the_order_of_the_axes_changes_nothing(axes: list[str], seed: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = {"t": 2, "z": 3, "c": 2, "y": 4, "x": 5}
    standard_spacing = {"z": 3.0, "y": 2.0, "x": 0.5}
    labels = generator.integers(0, 3, [sizes[a] for a in "tzyx"])
    image = generator.normal(size=[sizes[a] for a in "tczyx"])

    def arranged(order: str) -> tuple:
        plain = order.replace("c", "")
        spacing = tuple(standard_spacing[a] for a in plain if a in "zyx")
        scan = Scan(labels.transpose(["tzyx".index(a) for a in plain]), plain, spacing=spacing, units="mm")
        return measure(scan, Scan(image.transpose(["tczyx".index(a) for a in order]), order), slices=True)

    def facts(row) -> dict:
        places = {name: dict(zip(row.axes, getattr(row, name), strict=True)) for name in ("centroid", "lower", "upper")}
        return {"voxels": row.voxels, "size": row.size, **places, "mean": row.intensities[-1].mean}

    for found, expected in zip(arranged("".join(axes)), arranged("tczyx"), strict=True):
        assert (found.label, found.time, found.plane) == (expected.label, expected.time, expected.plane)
        a, b = facts(found), facts(expected)
        for key in a:
            assert a[key] == pytest.approx(b[key])


def test_labels_on_another_image_are_refused() -> None:
    with pytest.raises(DataError, match="measure labels on their own image"):
        measure(Scan(np.ones((3, 4), int), "yx"), Scan(np.ones((4, 3)), "yx"))


def test_the_table_as_csv(tmp_path) -> None:
    labels, image = oblique()
    data = np.where(labels.data == 3, 0, labels.data)
    table = columns(measure(labels.like(data, "zyx"), image, names=NAMES))
    write_table(tmp_path / "m.csv", table)
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == NAMES
    assert float(rows[0]["size"]) == table["size"][0]
    assert rows[0]["unit"] == "ml"
    assert float(rows[1]["centroid_x"]) == table["centroid_x"][1]
    assert (rows[2]["size"], rows[2]["centroid_x"], rows[2]["mean_intensity"]) == ("0.0", "", "")


def test_features_of_a_labels_layer() -> None:
    from napari.layers import Labels

    labels, image = oblique()
    table = features(measure(labels, image, names=NAMES, slices=True), ["background", *NAMES])
    assert table["index"] == [0, 1, 2, 3]
    layer = Labels(labels.data, features=table)
    place = tuple(np.argwhere(labels.data == 2)[0])
    assert "class: spleen" in layer.get_status(place)["value"]
    assert f"ml: {table['ml'][2]:.3g}, voxels" in layer.get_status(place)["value"]

    times = Scan(np.stack([labels.data, labels.data * 0]), "tzyx", spacing=labels.spacing, units="mm")
    table = features(measure(times, names=NAMES), ["background", *NAMES])
    assert list(table) == ["index", "class", "ml at t=0", "ml at t=1"]
    assert table["ml at t=1"] == [None, 0, 0, 0]
