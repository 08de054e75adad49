"""Augmentation: policies, crops, mirror images, CutMix and mixup (chapter 04)."""

from micronet_lib.augmentation.image_ops import OPERATIONS, apply_operation
