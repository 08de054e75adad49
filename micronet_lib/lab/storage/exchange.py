"""Networks for other runtimes: ONNX files, and OpenVINO, which runs them several times faster.

A file takes normalised images, float32 [N, 3, H, W], and gives logits [N, num_classes]. Batch norm
is folded. Its metadata are those of the other files of ours, each entry as JSON. What a stock
runtime predicts from it checks our own rating (`evaluate --runtime openvino`).
"""

import io
import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from micronet_lib.architecture.folding import fold_batch_norm
from micronet_lib.architecture.network import Network
from micronet_lib.early_exit import num_exits
from micronet_lib.errors import InputError
from micronet_lib.lab.data.images import MEAN, STD

SUFFIX = ".onnx"
RUNTIME = "`pip install -e '.[runtime]'`"


def needed(package: str, what: str) -> Any:
    """Import a package of the extra `runtime`.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise InputError(f"{what} needs {package}, which is not installed: {RUNTIME}") from error


def check_onnx(network: Network) -> None:
    """Raise an error if a network cannot be an ONNX file.

    Raises:
        InputError: it is quantised, or has several exits.
    """
    if not network.foldable:
        raise InputError(
            f"{network.spec.name} rounds as it computes, which is not written as {SUFFIX}"
        )
    exits = num_exits(network)
    if exits > 1:
        raise InputError(
            f"{network.spec.name} has {exits} exits, and {SUFFIX} would hold the last one alone"
        )


def onnx_bytes(network: Network, **metadata: Any) -> bytes:
    """Return the content of an ONNX file: the network folded, in float32, for any number of images.

    Args:
        network: any that can be folded.
        metadata: further entries, such as `recipe_id`; `spec` and `input` are always there.

    Raises:
        InputError: as for `check_onnx`; onnxscript is not installed; an operation has no
            counterpart.
    """
    check_onnx(network)
    needed("onnxscript", f"writing {SUFFIX}")
    images = torch.zeros(2, 3, 32, 32)
    # Overwritten activations take the exporter ten times as long.
    folded = fold_batch_norm(network, overwrite=False).float()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                folded,
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        line = str(error).partition("\n")[0]
        raise InputError(f"{network.spec.name} cannot be written as {SUFFIX} ({line})") from error
    finally:
        logger.setLevel(level)
    if program is None:
        raise RuntimeError("PyTorch wrote no program")
    metadata = {"spec": asdict(network.spec), "input": {"mean": MEAN, "std": STD}, **metadata}
    for name, value in metadata.items():
        program.model.metadata_props[name] = json.dumps(value)
    return program.model_proto.SerializeToString()


class OpenVino:
    """A network that OpenVINO runs on the CPU, in float32, on as many threads as PyTorch has.

    Args:
        content: of an ONNX file of this library.
        path: of the file, for messages.

    Attributes:
        metadata: of the file.

    Raises:
        InputError: OpenVINO is not installed; a damaged file, or one of another library.
    """

    metadata: Mapping[str, Any]

    def __init__(self, content: bytes, path: Path) -> None:
        openvino = needed("openvino", "the runtime 'openvino'")
        try:
            model = openvino.Core().read_model(content)
        except RuntimeError as error:
            raise InputError(f"{path} is damaged or no {SUFFIX} file: export it again") from error
        try:
            said = model.get_rt_info("framework").value
            self.metadata = {name: json.loads(text) for name, text in said.items()}
            self.metadata["spec"]["name"]
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is a network of another library: `micronet export` writes {SUFFIX} files "
                "that can be rated"
            ) from error
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU has it
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # other processes may use the same cores
        }
        self._run = openvino.Core().compile_model(model, "CPU", settings)

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits [N, num_classes] of normalised images, float32 [N, 3, H, W]."""
        return torch.from_numpy(self._run(images.numpy())[0].copy())


def load_onnx(path: Path) -> OpenVino:
    """Read an ONNX file of `export_network`.

    Raises:
        InputError: no such file, unreadable, or as for `OpenVino`.
    """
    if not path.is_file():
        raise InputError(f"no network at {path}; `micronet export` writes one")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): make it readable") from error
    return OpenVino(content, path)
