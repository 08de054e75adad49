"""Robustness against corrupted images, as Assembled CNN measures it (chapter 10).

The networks are `architecture.resnet` and `architecture.mobilenet`.
"""

from micronet_lib.assembled_cnn.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    mean_corruption_error,
)
