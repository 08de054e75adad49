"""Parts that Assembled CNN [lee2020assembled] puts into a network (chapter `10_assembled_cnn`).

All are modules `[N, C, H, W] -> [N, C', H', W']`.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.errors import InputError, is_integer, unknown

BLUR_SIZES = (3, 5)
MIN_SK_CHS = 32
"""Fewest channels between the two layers of a selective kernel, `L` in its paper."""


class SqueezeExcite(nn.Module):
    """Factors in (0, 1) for every channel, from the means of all channels [hu2018].

    Both layers are without bias, as in the released code of [lee2020assembled].

    Args:
        chs: channels.
        ratio: `r`; the inner layer has `chs / r` channels, at least one.
    """

    def __init__(self, chs: int, ratio: int) -> None:
        super().__init__()
        inner = max(1, chs // ratio)
        self.conv_reduce = nn.Conv2d(chs, inner, 1, bias=False)
        self.conv_expand = nn.Conv2d(inner, chs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with every channel multiplied by its factor."""
        inner = F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * self.conv_expand(inner).sigmoid()


class SelectiveKernel(nn.Module):
    """Two 3x3 convolutions, and for every channel a softmax that chooses between them [li2019].

    The two are one convolution of doubled width, as in [lee2020assembled, Figure 2]. [li2019] has
    kernels of 3x3 and 5x5.

    Args:
        in_chs: channels of the input.
        out_chs: channels of the output.
        stride: of the convolution.
        ratio: `r`; the layer between has `out_chs / r` channels, at least `MIN_SK_CHS`.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1, ratio: int = 2) -> None:
        super().__init__()
        inner = max(out_chs // ratio, MIN_SK_CHS)
        self.conv = nn.Conv2d(in_chs, 2 * out_chs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * out_chs)
        self.conv_reduce = nn.Conv2d(out_chs, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_choose = nn.Conv2d(inner, 2 * out_chs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_chs, H, W] -> [N, out_chs, H / stride, W / stride]`, every value 0 or above."""
        first, second = F.relu(self.bn(self.conv(x))).chunk(2, 1)
        means = (first + second).mean((2, 3), keepdim=True)
        choice = self.conv_choose(F.relu(self.bn_reduce(self.conv_reduce(means))))
        share = choice.unflatten(1, (2, -1)).softmax(1)  # [N, 2, out_chs, 1, 1]
        return share[:, 0] * first + share[:, 1] * second


class BlurPool(nn.Module):
    """A fixed low-pass filter for every channel, then every second pixel [zhang2019].

    The filter is a row of Pascal's triangle times itself, with sum 1; the border is reflected.

    Args:
        chs: channels.
        size: of the filter, one of `BLUR_SIZES`.
        stride: of what is kept.

    Raises:
        InputError: another size.
    """

    kernel: Tensor

    def __init__(self, chs: int, size: int = 3, stride: int = 2) -> None:
        super().__init__()
        check_number("blur size", size, BLUR_SIZES)
        row = torch.tensor({3: [1.0, 2.0, 1.0], 5: [1.0, 4.0, 6.0, 4.0, 1.0]}[size])
        kernel = row[:, None] * row / row.sum() ** 2
        self.register_buffer("kernel", kernel.repeat(chs, 1, 1, 1), persistent=False)
        self.chs, self.stride, self.border = chs, stride, [size // 2] * 4

    def forward(self, x: Tensor) -> Tensor:
        """`[N, chs, H, W] -> [N, chs, ceil(H / stride), ceil(W / stride)]`."""
        padded = F.pad(x, self.border, mode="reflect")
        return F.conv2d(padded, self.kernel, stride=self.stride, groups=self.chs)


def conv_bn(
    in_chs: int, out_chs: int, kernel: int, stride: int = 1, activate: bool = True
) -> nn.Sequential:
    """Return a convolution without bias, batch norm and, if asked for, ReLU."""
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False)
    found = nn.Sequential(conv, nn.BatchNorm2d(out_chs))
    return found.append(nn.ReLU()) if activate else found


def check_image(x: Tensor, smallest: int, multiple: int) -> Tensor:
    """Return images `[N, C, H, W]` if their sides suit a network.

    Args:
        x: images.
        smallest: number of pixels that a side must have.
        multiple: of which the sides must be multiples.

    Raises:
        InputError: sides that are too small, or on which two branches would not fit.
    """
    height, width = x.shape[-2:]
    if min(height, width) < smallest or height % multiple or width % multiple:
        multiples = f" that are multiples of {multiple}" if multiple > 1 else ""
        raise InputError(
            f"images are {height} x {width}, but this network needs sides of at least "
            f"{smallest}{multiples}"
        )
    return x


def start_convolutions(network: nn.Module) -> None:
    """Draw the weights of every convolution as for ReLU [he2015], from the global generator."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def check_ratios(**ratios: int) -> None:
    """Raise an error unless every ratio is a whole number, 0 for none.

    Raises:
        InputError: the ratio and what it may be.
    """
    for name, ratio in ratios.items():
        if not is_integer(ratio, 0):
            raise InputError(
                f"{name} is {ratio!r}; give a whole number of at least 1, or 0 for none"
            )


def check_size(num_classes: int, width_mult: float) -> None:
    """Raise an error unless there are classes, and channels.

    Raises:
        InputError: a number of classes below 1, or a factor of the widths that is not above 0.
    """
    if not is_integer(num_classes, 1):
        raise InputError(f"num_classes is {num_classes!r}; give a whole number of at least 1")
    if not 0 < width_mult < math.inf:
        raise InputError(f"width_mult is {width_mult}; give a finite number above 0")


def check_number(kind: str, number: object, known: Iterable[int]) -> None:
    """Raise an error unless a whole number is in a closed list; Python finds 1.0 and True there.

    Raises:
        InputError: the number and the list.
    """
    known = list(known)
    if not is_integer(number) or number not in known:
        raise unknown(kind, number, known)


def scaled(chs: int, width_mult: float) -> int:
    """Return a number of channels, scaled to a multiple of 8."""
    return max(8, round(chs * width_mult / 8) * 8)
