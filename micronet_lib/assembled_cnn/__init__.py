"""Robustness and retrieval, as Assembled CNN measures them (chapter 10).

The networks are `architecture.resnet` and `architecture.mobilenet`.
"""

from micronet_lib.assembled_cnn.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    mean_corruption_error,
)
from micronet_lib.assembled_cnn.perturbations import (
    PERTURBATIONS,
    flip_rate,
    mean_flip_rate,
    perturb,
)
