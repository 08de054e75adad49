"""C-EfficientNet and MicroNet: the networks of [kim2020] as tables of stages.

Chapter `01_architecture` draws and compares them. Images are `[N, 3, 32, 32]` floats, logits `[N,
100]`. The block follows the released code and weights: pointwise expansion, 3x3 depthwise,
pointwise projection, squeeze-and-excitation on the *projected* channels, shortcut. (The paper's
Figure 2 and the README differ in details, see the chapter.) A stride-2 block has no shortcut. A
stride-1 block that changes the width has a pointwise one.
"""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from micronet_lib.architecture.network import Network, NetworkSpec, register
from micronet_lib.errors import InputError, Registry, check_choice

NUM_CLASSES = 100
LARGEST = 10_000
"""No ratio and no number of channels is as large as this."""
EXPAND_RATIOS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
BN_MOMENTUM = 0.01  # running averages decay by 0.99 per step [kim2020, section 2.2]

DownsampleSE = Literal["none", "dead", "applied"]
Activation = Literal["hard_swish", "hard_swish_x6"]


@dataclass(frozen=True)
class Stage:
    """`num_blocks` blocks of `out_chs` channels; the first one has the `stride`."""

    out_chs: int
    num_blocks: int
    stride: int = 1


@dataclass(frozen=True)
class BlockConfig:
    """One MBConv block. `se_chs` 0: no squeeze-and-excitation; stride 2: no shortcut."""

    in_chs: int
    hidden_chs: int
    out_chs: int
    stride: int
    se_chs: int
    se_applied: bool = True
    pointwise_shortcut: bool = False
    activation: Activation = "hard_swish"

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, get_args(Activation))


@dataclass(frozen=True)
class Architecture:
    """A network as a table of stages.

    Attributes:
        stages: rows of the table, after the stem and before the head.
        expand_ratio: hidden channels of a block over its input channels, truncated.
        se_ratio: channels inside squeeze-and-excitation over the block's output channels.
        downsample_se: squeeze-and-excitation in stride-2 blocks. `applied` is the paper's. The
            released code computes it and drops the result (`dead`), so its weights never got a
            gradient. Our own networks leave it out (`none`).
        width_mult: multiplies every channel count, rounded to an even number; for small networks.
        cut_blocks: one entry for each block of a network that was cut after training, whose widths
            follow no table; otherwise empty.
    """

    name: str
    stages: tuple[Stage, ...]
    expand_ratio: float
    stem_chs: int = 32
    se_ratio: float = 0.25
    downsample_se: DownsampleSE = "none"
    dropout: float = 0.3
    num_classes: int = NUM_CLASSES
    width_mult: float = 1.0
    activation: Activation = "hard_swish"
    cut_blocks: tuple[BlockConfig, ...] = ()

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, get_args(Activation))
        check_choice("downsample_se", self.downsample_se, get_args(DownsampleSE))
        for name in ("expand_ratio", "stem_chs", "num_classes", "width_mult"):
            if not 0 < getattr(self, name) < LARGEST:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}; give a number above 0 and below {LARGEST}"
                )
        if not 0 <= self.se_ratio < LARGEST:
            raise InputError(f"se_ratio is {self.se_ratio!r}; give 0 for no gates, or more")

    @property
    def scaled_stem_chs(self) -> int:
        """Channels of the stem after `width_mult`."""
        return self._scaled(self.stem_chs)

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """Every block of the network, in order."""
        if self.cut_blocks:
            return self.cut_blocks
        blocks, in_chs = [], self.scaled_stem_chs
        for stage in self.stages:
            out_chs = self._scaled(stage.out_chs)
            for index in range(stage.num_blocks):
                stride = stage.stride if index == 0 else 1
                has_se = self.se_ratio > 0 and (stride == 1 or self.downsample_se != "none")
                blocks.append(
                    BlockConfig(
                        in_chs=in_chs,
                        hidden_chs=int(in_chs * self.expand_ratio),
                        out_chs=out_chs,
                        stride=stride,
                        se_chs=max(1, int(out_chs * self.se_ratio)) if has_se else 0,
                        se_applied=stride == 1 or self.downsample_se == "applied",
                        pointwise_shortcut=stride == 1 and in_chs != out_chs,
                        activation=self.activation,
                    )
                )
                in_chs = out_chs
        return tuple(blocks)

    def _scaled(self, chs: int) -> int:
        return chs if self.width_mult == 1.0 else max(4, 2 * round(chs * self.width_mult / 2))


class HardSwish(nn.Module):
    """`x * relu6(x + 3) / 6` [howard2019]. `scaled=False` leaves the division to the next layer."""

    def __init__(self, scaled: bool = True) -> None:
        super().__init__()
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        """Apply element-wise; any shape."""
        return F.hardswish(x) if self.scaled else x * F.relu6(x + 3)


class SqueezeExcite(nn.Module):
    """Channel gates in (0, 1) from the pooled features [hu2018]: `[N, C, H, W] -> [N, C, 1, 1]`."""

    def __init__(self, chs: int, se_chs: int, act: nn.Module) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(chs, se_chs, 1)
        self.act = act
        self.conv_expand = nn.Conv2d(se_chs, chs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gates. The block multiplies them in."""
        pooled = F.adaptive_avg_pool2d(x, 1)
        return self.conv_expand(self.act(self.conv_reduce(pooled))).sigmoid()


class MBConv(nn.Module):
    """Inverted residual with squeeze-and-excitation on the projected channels."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        scaled = c.activation == "hard_swish"
        self.conv_expand = nn.Conv2d(c.in_chs, c.hidden_chs, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(c.hidden_chs, momentum=BN_MOMENTUM)
        self.act_expand = HardSwish(scaled)
        self.conv_dw = nn.Conv2d(
            c.hidden_chs, c.hidden_chs, 3, c.stride, 1, groups=c.hidden_chs, bias=False
        )
        self.bn_dw = nn.BatchNorm2d(c.hidden_chs, momentum=BN_MOMENTUM)
        self.act_dw = HardSwish(scaled)
        self.conv_project = nn.Conv2d(c.hidden_chs, c.out_chs, 1, bias=False)
        self.bn_project = nn.BatchNorm2d(c.out_chs, momentum=BN_MOMENTUM)
        self.se = SqueezeExcite(c.out_chs, c.se_chs, HardSwish(scaled)) if c.se_chs else None
        self.conv_shortcut: nn.Conv2d | None = None
        self.bn_shortcut: nn.BatchNorm2d | None = None
        if c.pointwise_shortcut:
            self.conv_shortcut = nn.Conv2d(c.in_chs, c.out_chs, 1, bias=False)
            self.bn_shortcut = nn.BatchNorm2d(c.out_chs, momentum=BN_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_chs, H, W] -> [N, out_chs, H / stride, W / stride]`."""
        out = self.act_expand(self.bn_expand(self.conv_expand(x)))
        out = self.act_dw(self.bn_dw(self.conv_dw(out)))
        out = self.bn_project(self.conv_project(out))
        if self.se is not None:
            gate = self.se(out)  # a dead gate is computed too: the authors' counter charges it
            if self.config.se_applied:
                out = out * gate
        if self.config.stride == 2:
            return out
        if self.conv_shortcut is not None and self.bn_shortcut is not None:
            x = self.bn_shortcut(self.conv_shortcut(x))
        return out + x


class Stem(nn.Module):
    """3x3 convolution, batch norm, HardSwish."""

    def __init__(self, out_chs: int, act: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, out_chs, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_chs, momentum=BN_MOMENTUM)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, 32, 32] -> [N, out_chs, 32, 32]`."""
        return self.act(self.bn(self.conv(x)))


class Head(nn.Module):
    """Average pooling, dropout, linear classifier."""

    def __init__(self, in_chs: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(in_chs, num_classes)
        nn.init.zeros_(self.classifier.bias)  # [kim2020, section 3.1, step 3]; the counter sees it

    def forward(self, x: Tensor) -> Tensor:
        """`[N, in_chs, H, W] -> [N, num_classes]`."""
        return self.classifier(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class MicroNet(Network):
    """The network that an `Architecture` describes."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.spec = _spec(architecture)
        configs = architecture.blocks
        self.stem = Stem(
            architecture.scaled_stem_chs, HardSwish(architecture.activation == "hard_swish")
        )
        self.blocks = nn.Sequential(*(MBConv(config) for config in configs))
        self.head = Head(configs[-1].out_chs, architecture.num_classes, architecture.dropout)

    @property
    def classifier(self) -> nn.Linear:
        """The linear layer of the head."""
        return self.head.classifier

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The stem, every block, and the head."""
        blocks = {f"blocks.{index}": block for index, block in enumerate(self.blocks)}
        return {"stem": self.stem, **blocks, "head": self.head}

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, 32, 32] -> [N, num_classes]` logits."""
        return self.head(self.blocks(self.stem(x)))


def _stages(*widths: int, layers: tuple[int, ...]) -> tuple[Stage, ...]:
    strides = (1, 2, 1, 2, 2, 1, 1)  # 32x32 inputs leave the last stages at 4x4
    return tuple(Stage(*row) for row in zip(widths, layers, strides, strict=True))


V1_STAGES = _stages(16, 32, 48, 72, 80, 88, 106, layers=(2, 2, 3, 5, 1, 2, 1))
V2_STAGES = _stages(20, 36, 56, 80, 88, 96, 114, layers=(2, 2, 3, 5, 1, 2, 1))
PRINTED_STAGES = _stages(20, 36, 56, 80, 88, 96, 114, layers=(2, 3, 3, 5, 1, 2, 1))


def c_efficientnet(expand_ratio: float) -> Architecture:
    """Return C-EfficientNet-i of [kim2020, Tables 2 to 5], with the widths that give its NP row.

    These are the widths of MicroNet v1, not those of Table 1 (`table1` below).

    Raises:
        InputError: a ratio below 1.
    """
    if expand_ratio < 1:
        raise InputError(f"expand_ratio {expand_ratio} is under 1; the paper has 1.0 to 4.0")
    return Architecture(f"c_efficientnet_{expand_ratio:.1f}", V1_STAGES, expand_ratio)


def table1(expand_ratio: float = 3.0) -> Architecture:
    """Return [kim2020, Table 1] exactly as printed, a larger network than the measured one.

    Squeeze-and-excitation acts in every block, as section 2.1 says.
    """
    return Architecture(
        f"table1_{expand_ratio:.1f}", PRINTED_STAGES, expand_ratio, downsample_se="applied"
    )


def _registry() -> Registry[Architecture]:
    ours = [
        Architecture("micronet_v1", V1_STAGES, 3.0),
        Architecture("micronet_v2", V2_STAGES, 2.5),
        *map(c_efficientnet, EXPAND_RATIOS),
    ]
    released = [replace(a, name=f"{a.name}_released", downsample_se="dead") for a in ours]
    entries = [*ours, *released, *map(table1, EXPAND_RATIOS)]
    return Registry("model", {entry.name: entry for entry in entries})


ARCHITECTURES = _registry()
"""Every named network. `*_released` has the dead squeeze-and-excitation of the released code."""


_ANY = "micronet"


def _spec(architecture: Architecture) -> NetworkSpec:
    """Return the shortest spec: a registered name, and the fields that differ from it."""
    # Through JSON, which knows lists and no tuples.
    options = json.loads(json.dumps(asdict(architecture)))
    if architecture.name not in ARCHITECTURES:
        return NetworkSpec(_ANY, options)
    named = json.loads(json.dumps(asdict(ARCHITECTURES[architecture.name])))
    differing = {key: value for key, value in options.items() if value != named[key]}
    return NetworkSpec(architecture.name, differing)


def _build_named(name: str, /, width_mult: float = 1.0, **options: Any) -> MicroNet:
    return MicroNet(replace(ARCHITECTURES[name], width_mult=width_mult, **_tables(options)))


for _name in ARCHITECTURES:
    register(_name)(partial(_build_named, _name))


@register(_ANY)
def _build_any(**fields: Any) -> MicroNet:
    """Build any architecture from all its fields."""
    return MicroNet(Architecture(**_tables(fields)))


def _tables(options: dict[str, Any]) -> dict[str, Any]:
    """Convert rows that came from JSON back to dataclasses."""
    rows = {"stages": Stage, "cut_blocks": BlockConfig}
    return {
        key: tuple(rows[key](**row) for row in value) if key in rows else value
        for key, value in options.items()
    }
