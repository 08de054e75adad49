"""Networks: the contract, the registry, and their layers (chapter 01)."""

from micronet_lib.architecture.initialization import (
    INITIALIZATIONS,
    initialize,
    released,
    semi_orthogonal,
)
from micronet_lib.architecture.layers import KINDS, POINTWISE, layer_kind, weight_kinds
from micronet_lib.architecture.micronet import ARCHITECTURES, EXPAND_RATIOS, MBConv, MicroNet
from micronet_lib.architecture.mobilenet import MobileNetV1
from micronet_lib.architecture.network import (
    NETWORKS,
    Network,
    NetworkSpec,
    Wrapped,
    build,
    register,
    takes,
)
from micronet_lib.architecture.resnet import ResNet
