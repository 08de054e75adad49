"""DropBlock, an offline teacher and robustness against corrupted images (chapter 10).

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
