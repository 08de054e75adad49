"""Images a second beside multiply-accumulates: do fewer of them make a network faster?

    PYTHONPATH=tests python tests/benchmarks/throughput.py [--record data/throughput.json]

Times the networks of [lee2020assembled, Tables 8, 9 and 14], rebuilt, on images of their size, and
the published pruned networks on images of 32 pixels beside the same network without zeros. One
thread, float32, batch norm folded; networks take turns, and what counts is the processor's time
(`ratios`). A published file that is missing is left out.
"""

import argparse
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ratios import compare
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from micronet_lib.architecture import build
from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.lab.host.machine import environment
from micronet_lib.lab.host.places import checkpoint_path
from micronet_lib.lab.storage.published import load_published

ASSEMBLED: dict[str, tuple[str, int, dict[str, Any]]] = {
    "R50": ("resnet", 224, {}),
    "R101": ("resnet", 224, {"depth": 101}),
    "R152": ("resnet", 224, {"depth": 152}),
    "R50D": ("resnet", 224, {"resnet_d": True}),
    "R50D+SE": ("resnet", 224, {"resnet_d": True, "se_ratio": 16}),
    "R50D+SK": ("resnet", 224, {"resnet_d": True, "sk_ratio": 2}),
    "R50D+SK+BL": ("resnet", 256, {"sk_ratio": 2, "big_little": [2, 4]}),
    "R50D+SK+BL+AA": ("resnet", 256, {"sk_ratio": 2, "big_little": [2, 4], "blur": 3}),
    "R152D+SK+BL+AA": (
        "resnet",
        256,
        {"depth": 152, "sk_ratio": 2, "big_little": [1, 2], "blur": 3},
    ),
    "MobileNet-V1": ("mobilenet_v1", 224, {}),
    "SE-MobileNet-V1 (r=16)": ("mobilenet_v1", 224, {"se_ratio": 16}),
    "SE-MobileNet-V1 (r=2)": ("mobilenet_v1", 224, {"se_ratio": 2}),
}
"""Name -> registered network, side of its images, options."""
PRUNED = {
    "v2_no_zeros": ("v2_pr_15", "v2_pr_30", "v2_pr_45", "v2_pr_60"),
    "v1_no_zeros": ("v1_pr_60",),
}
"""A network without zeros -> its published pruned forms, the fewest zeros first."""


def macs_of(network: nn.Module, side: int) -> tuple[float, float]:
    """Multiply-accumulates of one image, and those whose weight is not 0."""
    by_zero = 0.0

    def count(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal by_zero
        places = out[0].numel() / len(module.weight)
        by_zero += places * int((module.weight == 0).sum())

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, kinds)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    macs = counter.get_total_flops() / 2
    return macs, macs - by_zero


def without_zeros(network: nn.Module) -> nn.Module:
    """The same network with small random numbers for its zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            drawn = 0.01 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(torch.where(parameter == 0, drawn, parameter))
    return network


def assembled() -> dict[str, tuple[nn.Module, int]]:
    torch.manual_seed(0)
    return {
        name: (build(model, num_classes=1000, **options).eval(), side)
        for name, (model, side, options) in ASSEMBLED.items()
    }


def pruned(dense: str) -> dict[str, tuple[nn.Module, int]]:
    paths = {name: checkpoint_path(f"micronet_{name}") for name in PRUNED[dense]}
    found = {name: load_published(path).eval() for name, path in paths.items() if path.is_file()}
    if not found:
        return {}
    filled = without_zeros(load_published(checkpoint_path(f"micronet_{next(iter(found))}")))
    return {dense: (filled.eval(), 32), **{name: (each, 32) for name, each in found.items()}}


@torch.inference_mode()
def timed(
    networks: Mapping[str, tuple[nn.Module, int]], batch: int, rounds: int
) -> list[dict[str, Any]]:
    """One row a network; `ratio` is its time by the first one's."""
    ways = {}
    for name, (network, side) in networks.items():
        images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        ways[name] = partial(fold_batch_norm(network), images)
    medians = compare(ways, batch, "images", rounds)
    rows = []
    for name, (network, side) in networks.items():
        macs, nonzero = macs_of(network, side)
        rows.append(
            {
                "network": name,
                "side": side,
                "macs": macs,
                "nonzero_macs": nonzero,
                "batch": batch,
                "rounds": rounds,
                "images_per_s": batch / medians[name],
                "ratio": medians[name] / medians[next(iter(medians))],
            }
        )
    return rows


def main() -> None:
    """Time all groups, and keep what was found if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", type=Path, help="JSON file for the times")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    rows = timed(assembled(), 2, args.rounds)
    for networks in filter(None, map(pruned, PRUNED)):
        rows += timed(networks, 25, 4 * args.rounds)
    if args.record:
        kept = {"env": environment(wall_s=round(time.perf_counter() - start)), "rows": rows}
        args.record.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
