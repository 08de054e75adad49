"""What a network in integers is charged: its operations, with the widths that they really have.

The counter sees a MicroNet whose weights are the integers, and whose layers say:

- the widths of weights, inputs, sums, scales and biases, and of HardSwish's product;
- what one position costs with the exact savings (`savings`);
- the constants besides: units of scales and biases, step and zero of the inputs.

Every input of a block costs a multiplication, because the stream is rounded there. The scales carry
HardSwish's division by six.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from micronet_lib.architecture.micronet import Activation, HardSwish, MicroNet
from micronet_lib.beyond.arithmetic import Sums
from micronet_lib.beyond.quantizers import SCALE_BITS
from micronet_lib.beyond.savings import compile_rows, costs
from micronet_lib.scoring.operations import Work

if TYPE_CHECKING:
    from micronet_lib.beyond.network import IntegerMicroNet

ACTIVATION: Activation = "hard_swish_x6"
FLOAT = 32
STEP_BITS = 32 + 8


def counted(network: "IntegerMicroNet", savings: bool = True) -> MicroNet:
    """Return the MicroNet whose operations are charged.

    Args:
        network: with all widths set.
        savings: whether equal weights are multiplied once and shared sums added once.
    """
    architecture = network.architecture
    blocks = tuple(replace(each, activation=ACTIVATION) for each in architecture.cut_blocks)
    architecture = replace(architecture, activation=ACTIVATION, cut_blocks=blocks)
    plain = MicroNet(architecture).eval().to(network.classifier.weight.device)
    layers = dict(plain.named_modules())
    seen = set[int]()
    for name, sums in network.sums().items():
        layer: Any = layers[name]
        layer.weight.data = sums.weight.clone()
        if layer.bias is not None:
            layer.bias.data.fill_(1)  # stored, whatever its value
        layer.weight_bits = network.layers[name].weight_bits
        layer.activation_bits = sums.bits
        layer.accumulator_bits = sums.width
        # One scale for all is the layer's own, among its constants.
        layer.scale_bits = 0 if network.widths.shared_scales else SCALE_BITS
        layer.bias_bits = network.layers[name].bias_bits
        # Two layers may read the same integers, whose step is stored once.
        reads = network.layers[name].reads
        layer.constant_bits = 2 * FLOAT + (0 if id(reads) in seen else STEP_BITS)
        seen.add(id(reads))
        if savings:
            layer.work = work_of(sums, layer.weight_bits)
    for module in plain.modules():
        if isinstance(module, HardSwish):
            said: Any = module
            said.activation_bits = said.accumulator_bits = network.widths.pre
    for block in list(plain.blocks)[1:]:
        block.register_forward_pre_hook(_rounded)
    return plain


def _rounded(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Stand for the product that rounds the stream to integers."""
    return (inputs[0] * 1.0,)


def work_of(sums: Sums, weight_bits: int) -> Work:
    """Return what one output position of a layer costs with the exact savings."""
    depthwise = sums.groups > 1
    program = compile_rows(sums.weight.flatten(1).long().cpu().numpy(), share=not depthwise)
    found = costs(program, weight_bits, sums.bits, sums.start.long().cpu().numpy())
    return Work(dict(found.mult_widths), dict(found.add_widths))
