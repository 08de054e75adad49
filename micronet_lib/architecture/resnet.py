"""ResNet with the tweaks of Assembled CNN [lee2020assembled] (chapter `10_assembled_cnn`).

One builder, `resnet`, with a switch for every tweak. Without any it is the ResNet of [he2016] with
the stride in the 3x3 convolution, as torchvision's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.architecture.network import Network, register
from micronet_lib.architecture.tweaks import (
    BLUR_SIZES,
    BlurPool,
    SelectiveKernel,
    SqueezeExcite,
    check_image,
    check_number,
    check_ratios,
    check_size,
    conv_bn,
    scaled,
    start_convolutions,
)
from micronet_lib.errors import InputError, check_choice, is_integer

# One call in a traced network: it looks at the shape alone.
torch.fx.wrap("check_image")

EXPANSION = 4
STEM_CHS = 64

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks of each stage by depth."""
BIG_LITTLE_BLOCKS = {50: (3, 4, 6, 3), 101: (4, 8, 18, 3), 152: (5, 12, 30, 3)}
"""The same with Big-Little stages, as in the code of [lee2020assembled]."""

STEMS = ("imagenet", "cifar")
BLUR_PLACES = ("strided_conv", "projection", "max_pool")


@dataclass(frozen=True)
class Tweaks:
    """The switches that every block of a `ResNet` knows; see `resnet`."""

    resnet_d: bool = False
    se_ratio: int = 0
    sk_ratio: int = 0
    big_little: tuple[int, int] | None = None
    blur: int = 0
    blur_at: tuple[str, ...] = ("strided_conv",)
    zero_gamma: bool = True


class Bottleneck(nn.Module):
    """1x1 to `chs`, 3x3 at `chs`, 1x1 to `4 chs`, and a shortcut around them [he2016].

    Args:
        in_chs: channels of the input.
        chs: channels of the 3x3 convolution.
        stride: of the 3x3 convolution and of the shortcut.
        tweaks: switches.
        project: whether the shortcut has a convolution.
        activate: whether the sum passes through ReLU.
    """

    def __init__(
        self,
        in_chs: int,
        chs: int,
        stride: int,
        tweaks: Tweaks,
        project: bool = False,
        activate: bool = True,
    ) -> None:
        super().__init__()
        out_chs = EXPANSION * chs
        blurs = stride > 1 and tweaks.blur > 0
        inner_stride = 1 if blurs and "strided_conv" in tweaks.blur_at else stride
        self.conv_reduce = conv_bn(in_chs, chs, 1)
        self.spatial: nn.Module
        if tweaks.sk_ratio:
            self.spatial = SelectiveKernel(chs, chs, inner_stride, tweaks.sk_ratio)
        else:
            self.spatial = conv_bn(chs, chs, 3, inner_stride)
        self.blur = BlurPool(chs, tweaks.blur) if inner_stride < stride else nn.Identity()
        self.conv_expand = conv_bn(chs, out_chs, 1, activate=False)
        self.se = SqueezeExcite(out_chs, tweaks.se_ratio) if tweaks.se_ratio else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if project:
            self.shortcut = _projection(in_chs, out_chs, stride, tweaks)
        self.activate = activate
        if tweaks.zero_gamma:
            last = self.conv_expand[1]
            assert isinstance(last, nn.BatchNorm2d)
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_chs, H, W] -> [N, 4 chs, H / stride, W / stride]`."""
        inner = self.blur(self.spatial(self.conv_reduce(x)))
        total = self.se(self.conv_expand(inner)) + self.shortcut(x)
        return F.relu(total) if self.activate else total


def _projection(in_chs: int, out_chs: int, stride: int, tweaks: Tweaks) -> nn.Sequential:
    """Return the shortcut of a block that changes the number of channels or the size."""
    pool: nn.Module | None = None
    if stride > 1 and tweaks.blur and "projection" in tweaks.blur_at:
        pool = BlurPool(in_chs, tweaks.blur)
    elif stride > 1 and tweaks.big_little:
        pool = nn.AvgPool2d(3, stride, 1)
    elif stride > 1 and tweaks.resnet_d:
        # A side with an odd number of pixels keeps its last one, as in the convolutions.
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
    if pool is None:
        return conv_bn(in_chs, out_chs, 1, stride, activate=False)
    return nn.Sequential(pool, *conv_bn(in_chs, out_chs, 1, activate=False))


def _blocks(
    in_chs: int, chs: int, number: int, stride: int, tweaks: Tweaks, activate_last: bool = True
) -> nn.Sequential:
    """Return blocks in a row, of which the first has the stride and a projection."""
    out_chs = EXPANSION * chs
    return nn.Sequential(
        *(
            Bottleneck(
                out_chs if index else in_chs,
                chs,
                1 if index else stride,
                tweaks,
                project=not index,
                activate=activate_last or index < number - 1,
            )
            for index in range(number)
        )
    )


class BigLittleStage(nn.Module):
    """A deep branch at half the size, a shallow one at full size, and a block over their sum.

    Big-Little Net [chen2018]: the big branch has one block less than the stage, and no ReLU at its
    end; the little one is narrower by `alpha` and shallower by `beta`.

    Args:
        in_chs: channels of the input.
        chs: channels of the 3x3 convolutions of the big branch.
        number: blocks that the stage would have, at least two.
        stride: of the last block; the stage makes images smaller by it.
        tweaks: switches, with `big_little`.
    """

    def __init__(self, in_chs: int, chs: int, number: int, stride: int, tweaks: Tweaks) -> None:
        super().__init__()
        assert tweaks.big_little is not None
        alpha, beta = tweaks.big_little
        out_chs, narrow = EXPANSION * chs, max(1, chs // alpha)
        depth = max(1, number // beta - 1)
        self.big = _blocks(in_chs, chs, number - 1, 2, tweaks, activate_last=False)
        self.little = _blocks(in_chs, narrow, depth, 1, tweaks)
        self.widen = conv_bn(EXPANSION * narrow, out_chs, 1, activate=False)
        self.merge = _blocks(out_chs, chs, 1, stride, tweaks)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_chs, H, W] -> [N, 4 chs, H / stride, W / stride]`; `H` and `W` are even."""
        big = F.interpolate(self.big(x), scale_factor=2.0, mode="nearest")
        return self.merge(F.relu(big + self.widen(self.little(x))))


class BigLittleStem(nn.Module):
    """What takes the place of max-pooling before Big-Little stages [chen2018].

    Args:
        chs: channels of input and output.
        alpha: by how much the little branch is narrower.
    """

    def __init__(self, chs: int, alpha: int) -> None:
        super().__init__()
        narrow = max(1, chs // alpha)
        self.big = conv_bn(chs, chs, 3, 2, activate=False)
        self.little = nn.Sequential(
            *conv_bn(chs, narrow, 3),
            *conv_bn(narrow, narrow, 3, 2),
            *conv_bn(narrow, chs, 1, activate=False),
        )
        self.merge = conv_bn(chs, chs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, chs, H, W] -> [N, chs, H / 2, W / 2]`."""
        return self.merge(F.relu(self.big(x) + self.little(x)))


def _stem(chs: int, stem: str, tweaks: Tweaks) -> nn.Sequential:
    if stem == "cifar":
        return conv_bn(3, chs, 3)
    if tweaks.resnet_d:
        half = max(1, chs // 2)
        found = nn.Sequential(
            *conv_bn(3, half, 3, 2), *conv_bn(half, half, 3), *conv_bn(half, chs, 3)
        )
    else:
        found = conv_bn(3, chs, 7, 2)
    if tweaks.big_little:
        return found.append(BigLittleStem(chs, tweaks.big_little[0]))
    if tweaks.blur and "max_pool" in tweaks.blur_at:
        return found.append(nn.MaxPool2d(3, 1, 1)).append(BlurPool(chs, tweaks.blur))
    return found.append(nn.MaxPool2d(3, 2, 1))


class ResNet(Network):
    """A ResNet of bottleneck blocks; `resnet` makes it from plain options.

    Args:
        blocks: number of blocks of each stage. The width doubles from stage to stage.
        num_classes: logits.
        width_mult: of every width, to multiples of 8.
        stem: of `STEMS`.
        tweaks: switches.
        last_stride: of the last stage, if it is not the first.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        num_classes: int,
        width_mult: float,
        stem: str,
        tweaks: Tweaks,
        last_stride: int = 2,
    ) -> None:
        super().__init__()
        chs = scaled(STEM_CHS, width_mult)
        last = len(blocks) - 1
        self.stem = _stem(chs, stem, tweaks)
        stages, in_chs = list[nn.Module](), chs
        for index, number in enumerate(blocks):
            if tweaks.big_little and index < last:
                stride = 1 if index == last - 1 else 2
                stages.append(BigLittleStage(in_chs, chs, number, stride, tweaks))
            else:
                stride = 1 if index == 0 else last_stride if index == last else 2
                # With both switches the last stage has the shortcut of ResNet-D [assembled_code].
                own = replace(tweaks, big_little=None) if tweaks.resnet_d else tweaks
                stages.append(_blocks(in_chs, chs, number, stride, own))
            in_chs, chs = EXPANSION * chs, 2 * chs
        self.stages = nn.Sequential(*stages)
        self._classifier = nn.Linear(in_chs, num_classes)
        stem_stride = 4 if stem == "imagenet" else 1
        # Big-Little branches halve images in every stage but the last.
        halvings = last if tweaks.big_little or last_stride == 2 else max(0, last - 1)
        whole_stride = stem_stride * 2**halvings
        # Where the last blur reads, a border must be smaller than the map that it reflects.
        blurred = whole_stride // 2 * (tweaks.blur // 2) + 1 if tweaks.blur else 1
        self.smallest = max(whole_stride, blurred)
        # Every branch at half the size needs an even number of pixels.
        self.multiple = whole_stride if tweaks.big_little else 1
        start_convolutions(self)

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer."""
        return self._classifier

    @property
    def parts(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """The stem, every block, and the head. A Big-Little stage is one part."""
        found: dict[str, Callable[[Tensor], Tensor]] = {
            "stem": lambda x: self.stem(check_image(x, self.smallest, self.multiple))
        }
        for index, stage in enumerate(self.stages):
            if isinstance(stage, BigLittleStage):
                found[f"stages.{index}"] = stage
            else:
                found |= {f"stages.{index}.{name}": block for name, block in stage.named_children()}
        return {**found, "head": lambda x: self._classifier(x.mean((2, 3)))}

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W] -> [N, num_classes]` logits.

        Raises:
            InputError: images that are too small, or whose sides the branches do not fit.
        """
        x = self.stages(self.stem(check_image(x, self.smallest, self.multiple)))
        return self._classifier(x.mean((2, 3)))


@register("resnet")
def resnet(
    depth: int = 50,
    blocks: Sequence[int] = (),
    num_classes: int = 100,
    width_mult: float = 1.0,
    stem: str = "imagenet",
    resnet_d: bool = False,
    se_ratio: int = 0,
    sk_ratio: int = 0,
    big_little: Sequence[int] = (),
    blur: int = 0,
    blur_at: Sequence[str] = ("strided_conv",),
    zero_gamma: bool = True,
    last_stride: int = 2,
) -> Network:
    """Build a ResNet of bottleneck blocks with the tweaks of [lee2020assembled].

    The paper's R50D+SK+BL+AA is `sk_ratio=2, big_little=[2, 4], blur=3`: its scripts leave ResNet-D
    out where there are Big-Little stages, which pool in their shortcuts anyway. Unlike the code
    [assembled_code], no shortcut is pooled in a block without stride.

    With the stem `cifar` less is left of two tweaks. The stem stays one 3x3 convolution, so
    ResNet-D changes shortcuts alone, and Big-Little has no branches there. In a stage of two blocks
    the little branch has one block, whatever `beta` is.

    Args:
        depth: 50, 101 or 152; ignored if `blocks` is given.
        blocks: number of blocks of each stage.
        num_classes: logits.
        width_mult: of every width, to multiples of 8.
        stem: `imagenet` is 7x7 with stride 2 and a pooling, `cifar` 3x3 without either.
        resnet_d: a stem of three 3x3 convolutions, and shortcuts that average before they project
            [he2019].
        se_ratio: `r` of squeeze-and-excitation; 0 for none. The paper has 16.
        sk_ratio: `r` of selective kernels; 0 for none. The paper has 2.
        big_little: `alpha` and `beta` of Big-Little stages; empty for none.
        blur: size of the filter of anti-aliased downsampling; 0 for none. The paper has 3.
        blur_at: names of `BLUR_PLACES`.
        zero_gamma: whether the last batch norm of a block starts at 0, so that it starts as its
            shortcut.
        last_stride: of the last stage. The paper has 1 for retrieval, where the largest maps are
            best.

    Raises:
        InputError: an option outside its range.
    """
    check_size(num_classes, width_mult)
    check_choice("stem", stem, STEMS)
    check_ratios(se_ratio=se_ratio, sk_ratio=sk_ratio)
    check_number("last_stride", last_stride, (1, 2))
    if blur:
        check_number("blur size", blur, BLUR_SIZES)
    for place in blur_at:
        check_choice("place of blur", place, BLUR_PLACES)
    if big_little and (len(big_little) != 2 or not all(is_integer(each, 1) for each in big_little)):
        raise InputError(
            f"big_little is {list(big_little)}; give alpha and beta, whole numbers of at least 1, "
            "or nothing"
        )
    if not blocks:
        known = BIG_LITTLE_BLOCKS if big_little else BLOCKS
        check_number("depth", depth, known)
        blocks = known[depth]
    if not all(is_integer(number, 2 if big_little else 1) for number in blocks):
        raise InputError(
            f"blocks is {list(blocks)}; a stage has a whole number of blocks, at least one, with "
            "big_little two"
        )
    if big_little and len(blocks) < 2:
        raise InputError("big_little needs two stages or more: the last one has no branches")
    tweaks = Tweaks(
        resnet_d,
        se_ratio,
        sk_ratio,
        (big_little[0], big_little[1]) if big_little else None,
        blur,
        tuple(blur_at),
        zero_gamma,
    )
    return ResNet(blocks, num_classes, width_mult, stem, tweaks, last_stride)
