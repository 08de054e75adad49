"""Inference: batch norm merged into convolutions, and nothing computed that no logit depends on."""

import copy
from collections import Counter
from contextlib import suppress
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import matches_module_pattern, replace_node_module
from torch.nn.utils.fusion import fuse_conv_bn_eval

Module = TypeVar("Module", bound=nn.Module)


class _Tracer(fx.Tracer):
    """A tracer that treats every convolution as a leaf, whatever its class."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, name)


OVERWRITING = (F.hardswish, F.relu, F.relu6, F.silu)
"""Activations that have an option to overwrite their input."""


def fold_batch_norm(network: nn.Module, overwrite: bool = True) -> nn.Module:
    """Return a copy for inference: every batch norm merged into the convolution before it.

    The copy is in evaluation mode and `channels_last`. Operations that no logit depends on, such as
    a dead gate, are not computed. With `overwrite`, an activation after a convolution overwrites
    its input. A network with `foldable = False`, or one that cannot be traced, is copied unfolded.
    """
    copied = copy_of(network).eval()
    graph = None
    if getattr(network, "foldable", True):
        # Tracing calls the network on stand-ins for tensors, which may raise anything.
        with suppress(Exception):
            graph = _Tracer().trace(copied)
    if graph is not None:
        copied = fx.GraphModule(copied, graph)
        _merge_batch_norms(copied)
        copied.graph.eliminate_dead_code(_has_effects)
        copied.delete_all_unused_submodules()
        if overwrite:
            _overwrite_inputs(copied)
        copied.recompile()
    return copied.to(memory_format=torch.channels_last)


def copy_of(network: Module) -> Module:
    """Return a deep copy, also of a network with hooks that compute its weights.

    Such a weight, of `torch.nn.utils.prune` for example, has a graph behind it and cannot be copied
    by Python. The next call makes it anew.
    """
    computed = (value for module in network.modules() for value in vars(module).values())
    leaves = {
        id(value): value.detach().clone()
        for value in computed
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(network, leaves)


def _merge_batch_norms(traced: fx.GraphModule) -> None:
    nodes = list(traced.graph.nodes)
    layers = dict(traced.named_modules())
    # A layer that is called twice, or whose weight is read elsewhere, must not change.
    uses = Counter(node.target for node in nodes if node.op == "call_module")
    uses.update(node.target.rpartition(".")[0] for node in nodes if node.op == "get_attr")
    for node in nodes:
        if not matches_module_pattern((nn.Conv2d, nn.BatchNorm2d), node, layers):
            continue
        before = node.args[0]
        once = len(before.users) == uses[before.target] == 1
        layer = layers[before.target]
        if layer._forward_pre_hooks or layer._forward_hooks:
            continue  # they compute its weight, or change what it reads or returns
        if once and layers[node.target].track_running_stats:
            merged = fuse_conv_bn_eval(layer, layers[node.target])
            replace_node_module(before, layers, merged)
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)


def _overwrite_inputs(traced: fx.GraphModule) -> None:
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.target in OVERWRITING:
            before = node.args[0]
            made_here = before.op == "call_module" and isinstance(
                traced.get_submodule(before.target), nn.Conv2d
            )
            if made_here and len(before.users) == 1:
                node.kwargs = {**node.kwargs, "inplace": True}


def _has_effects(node: fx.Node) -> bool:
    """Return whether a call has an effect although nobody reads its result."""
    if node.op == "call_method":
        return str(node.target).endswith("_")
    overwrites = node.kwargs.get("inplace", False)
    if node.op == "call_module" and node.graph.owning_module is not None:
        layer = node.graph.owning_module.get_submodule(str(node.target))
        overwrites = getattr(layer, "inplace", False)
    return bool(overwrites) or node.is_impure()
