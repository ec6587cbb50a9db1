"""Contourlet transforms: exact, differentiable, batched, of any image size.

>>> import torch
>>> from rskd.contourlet import contourlet, icontourlet
>>> image = torch.rand(1, 3, 64, 64)
>>> subbands = contourlet(image, (3, 2))
>>> [len(level) for level in subbands.bands]
[8, 4]
>>> torch.allclose(icontourlet(subbands), image, atol=1e-5)
True
"""

from rskd.contourlet.banks import noise_gains
from rskd.contourlet.denoising import denoise
from rskd.contourlet.energy import weighted_energy
from rskd.contourlet.extension import max_levels, plan_layout
from rskd.contourlet.filters import DIRECTIONAL_FILTERS, PYRAMID_FILTERS
from rskd.contourlet.stages import directional_bank, idirectional_bank, laplacian_pyramid
from rskd.contourlet.subbands import Layout, Subband, Subbands
from rskd.contourlet.transform import (
    contourlet,
    icontourlet,
    inonsubsampled_contourlet,
    nonsubsampled_contourlet,
)

__all__ = [
    "DIRECTIONAL_FILTERS",
    "PYRAMID_FILTERS",
    "Layout",
    "Subband",
    "Subbands",
    "contourlet",
    "denoise",
    "directional_bank",
    "icontourlet",
    "idirectional_bank",
    "inonsubsampled_contourlet",
    "laplacian_pyramid",
    "max_levels",
    "noise_gains",
    "nonsubsampled_contourlet",
    "plan_layout",
    "weighted_energy",
]
