"""Both backends do the same, and torch's alone needs torch."""

import numpy as np
import pytest
import torch

from rskd.backend import Backend, NumpyBackend, backend_of
from rskd.backend_torch import TorchBackend
from rskd.config import ModelSpec, SegmentOptions
from rskd.events import drain
from rskd.scan import Scan
from rskd.segment import segment

BOTH = (NumpyBackend(), TorchBackend())


def both(operation, *arrays):
    """Return what an operation makes of copies of `arrays` on both backends, as NumPy arrays."""
    found = []
    for backend in BOTH:
        own = [backend.put(array.copy()) for array in arrays]
        found.append(backend.get(operation(backend, *own)))
    return found


def noise(*shape):
    return np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)


def softmax(backend: Backend, values):
    backend.softmax(values)
    return values


def blend(backend: Backend, place, tile, rows, columns):
    backend.blend(place, tile, rows, columns)
    return place


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_the_small_operations_agree(classes):
    values = noise(classes, 6, 9)
    values[:, 0] = 1.0  # ties go to the first
    np.testing.assert_allclose(*both(softmax, values), atol=1e-6)
    np.testing.assert_array_equal(*both(lambda b, x: b.strongest(x), values))
    np.testing.assert_array_equal(NumpyBackend().strongest(values), values.argmax(0))
    np.testing.assert_allclose(*both(blend, values, noise(classes, 6, 9), noise(6), noise(9)), atol=1e-5)


def test_large_logits_do_not_overflow():
    np.testing.assert_array_equal(softmax(NumpyBackend(), np.float32([[[1e4]], [[-1e4]]])), [[[1]], [[0]]])


class Product:
    """A network without torch: its logits are the first channel and minus that."""

    backend = NumpyBackend()

    def __init__(self, **fields):
        self.spec = ModelSpec(name="product", image_size=32, **fields)

    def __call__(self, images):
        return np.concatenate([images, -images], 1)

    def parameters(self):
        return iter(())

    modules = parameters

    def eval(self):
        return self


class ProductOfTorch(torch.nn.Module):
    def __init__(self, **fields):
        super().__init__()
        self.spec = Product(**fields).spec

    def forward(self, images):
        return torch.cat([images, -images], 1)


@pytest.mark.parametrize("frame", [None, 40, 200])
@pytest.mark.parametrize("size", [(1, 1), (33, 100), (7, 5)])
def test_a_scan_is_segmented_alike(size, frame):
    scan, options = Scan(noise(2, *size), "zyx"), SegmentOptions(probabilities=True)
    mine, theirs = (drain(segment(kind(frame=frame), scan, options)) for kind in (Product, ProductOfTorch))
    np.testing.assert_allclose(mine.probabilities.data, theirs.probabilities.data, rtol=0, atol=1e-5)
    clear = np.abs(theirs.probabilities.data[0] - 0.5) > 1e-4
    np.testing.assert_array_equal(mine.labels.data[clear], theirs.labels.data[clear])
    alone = drain(segment(Product(frame=frame), scan))
    np.testing.assert_array_equal(alone.labels.data, mine.labels.data)


def test_the_backend_of_a_network():
    assert backend_of(Product()) is Product.backend
    assert backend_of(torch.nn.Conv2d(1, 1, 1)).device == "cpu"
    assert backend_of(ProductOfTorch()).device == "cpu"
