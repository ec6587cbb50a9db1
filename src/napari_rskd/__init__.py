"""RSKD in napari: distill, segment, and look at token rankings and contourlet sub-bands."""
