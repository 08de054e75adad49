"""MobileNet-V1 [howard2017], with squeeze-and-excitation if asked for.

Chapter `10_assembled_cnn`.
"""

from collections.abc import Callable

import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.architecture.network import Network, register
from micronet_lib.architecture.resnet import STEMS
from micronet_lib.architecture.tweaks import (
    SqueezeExcite,
    check_image,
    check_ratios,
    check_size,
    scaled,
    start_convolutions,
)
from micronet_lib.errors import check_choice

# One call in a traced network: it looks at the shape alone.
torch.fx.wrap("check_image")

STEM_CHS = 32
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
"""Output channels and stride of every block [howard2017, Table 1].

The last stride is printed as 2 there, at a size of 7 that leaves no room for it; it is 1.
"""


class SeparableConv(nn.Module):
    """A 3x3 convolution of every channel, then a 1x1 convolution, each with batch norm and ReLU.

    Args:
        in_chs: channels of the input.
        out_chs: channels of the output.
        stride: of the first.
        se_ratio: `r` of squeeze-and-excitation after both; 0 for none.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, se_ratio: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_chs, in_chs, 3, stride, 1, groups=in_chs, bias=False)
        self.bn_dw = nn.BatchNorm2d(in_chs)
        self.conv_pw = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.bn_pw = nn.BatchNorm2d(out_chs)
        self.se = SqueezeExcite(out_chs, se_ratio) if se_ratio else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_chs, H, W] -> [N, out_chs, H / stride, W / stride]`."""
        x = F.relu(self.bn_dw(self.conv_dw(x)))
        return self.se(F.relu(self.bn_pw(self.conv_pw(x))))


class MobileNetV1(Network):
    """MobileNet-V1; `mobilenet_v1` makes it from plain options."""

    def __init__(self, num_classes: int, width_mult: float, stem: str, se_ratio: int) -> None:
        super().__init__()
        in_chs = scaled(STEM_CHS, width_mult)
        stride = 2 if stem == "imagenet" else 1
        self.conv = nn.Conv2d(3, in_chs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(in_chs)
        blocks, self.smallest = [], stride
        for chs, stride in BLOCKS:
            blocks.append(SeparableConv(in_chs, scaled(chs, width_mult), stride, se_ratio))
            in_chs = scaled(chs, width_mult)
            self.smallest *= stride
        self.blocks = nn.Sequential(*blocks)
        self._classifier = nn.Linear(in_chs, num_classes)
        start_convolutions(self)

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer."""
        return self._classifier

    @property
    def parts(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """The stem, every block, and the head."""
        blocks = {f"blocks.{name}": block for name, block in self.blocks.named_children()}
        return {"stem": self._stem, **blocks, "head": self._head}

    def _stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(check_image(x, self.smallest, 1))))

    def _head(self, x: Tensor) -> Tensor:
        return self._classifier(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W] -> [N, num_classes]` logits.

        Raises:
            InputError: images smaller than the stride of the whole network.
        """
        return self._head(self.blocks(self._stem(x)))


@register("mobilenet_v1")
def mobilenet_v1(
    num_classes: int = 100, width_mult: float = 1.0, stem: str = "imagenet", se_ratio: int = 0
) -> Network:
    """Build MobileNet-V1 [howard2017].

    Args:
        num_classes: logits.
        width_mult: of every width, to multiples of 8.
        stem: `imagenet` has stride 2, `cifar` 1.
        se_ratio: `r` of squeeze-and-excitation after every block; 0 for none. [lee2020assembled]
            has 16 and 2 and does not say where; after the block is our reading.

    Raises:
        InputError: an option outside its range.
    """
    check_size(num_classes, width_mult)
    check_choice("stem", stem, STEMS)
    check_ratios(se_ratio=se_ratio)
    return MobileNetV1(num_classes, width_mult, stem, se_ratio)
