"""Regularizers, robustness, retrieval and transfer of Assembled CNN (chapter 10).

The networks are `architecture.resnet` and `architecture.mobilenet`, the ways of mixup are in
`augmentation.mixing`, AutoAugment's policy in `augmentation.policies`.
"""

from micronet_lib.assembled_cnn.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    mean_corruption_error,
)
from micronet_lib.assembled_cnn.drop_block import (
    DropBlock,
    DropBlockConfig,
    begins,
    drop_block,
    drop_block_places,
)
from micronet_lib.assembled_cnn.offline_teacher import TeacherLogits, mixed_answers
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
