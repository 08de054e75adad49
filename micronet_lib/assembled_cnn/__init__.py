"""Robustness, retrieval and transfer, as Assembled CNN measures them (chapter 10).

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
from micronet_lib.assembled_cnn.retrieval import (
    ArcFaceConfig,
    Embed,
    EmbeddingNetwork,
    Embeddings,
    GeM,
    arcface_logits,
    nearest,
    recall_at_k,
)
from micronet_lib.assembled_cnn.transfer import NewClassifier
