"""Knowledge distillation for medical image segmentation: token ranking, contourlet texture, multi-stage features."""

__version__ = "0.1.0"
