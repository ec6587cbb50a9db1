"""Pictures to try things on: a retina photograph, and generated vessels."""

from __future__ import annotations

from typing import Any

import numpy as np

LayerData = tuple[Any, dict[str, Any], str]
RETINA = "Retina (photograph)"
PHANTOM_SIZE = 256


def retina() -> list[LayerData]:
    """Return the fundus photograph that comes with scikit-image."""
    from skimage import data

    return [(data.retina(), {"name": RETINA, "rgb": True}, "image")]  # type: ignore[no-untyped-call]


def phantom() -> list[LayerData]:
    """Return a generated picture of vessels, and the vessels."""
    from rskd.phantom import vessel_phantom

    image, mask = vessel_phantom(np.random.default_rng(0), PHANTOM_SIZE)
    return [
        (image, {"name": "Vessels (generated)", "rgb": True}, "image"),
        ((mask > 0).astype(np.uint8), {"name": "Vessel mask (generated)"}, "labels"),
    ]
