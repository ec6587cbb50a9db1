"""Segmentation networks: a timm Vision Transformer with a convolutional stem and a light decoder."""
