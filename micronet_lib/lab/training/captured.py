"""CUDA graphs: capture a training step or a rating once, then replay it.

A training step of these networks is some thousand kernels of a few microseconds. Launched one by
one, they leave the GPU idle; a graph launches them all at once. The captured function is
`Step.update` itself with inputs at fixed addresses, so a step is defined only once. If capturing
fails, a line on stderr says so and the step runs without a graph.
"""

import gc
from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor

from micronet_lib.architecture.network import Network
from micronet_lib.augmentation.mixing import MixDraw
from micronet_lib.errors import NotFiniteError
from micronet_lib.lab.data.images import ImageSet, normalize
from micronet_lib.lab.host.progress import say
from micronet_lib.lab.training.evaluation import GPU_BATCH_SIZE, evaluate
from micronet_lib.lab.training.step import Step

WARM_UP = 3
RECOMPILE_LIMIT = 256
WORTH_COMPILING = 2000
"""Steps. Shorter runs do not save the minute that compiling takes."""


def capture(body: Callable[[], None], generator: torch.Generator | None) -> Callable[[], None]:
    """Capture `body` in a CUDA graph and return a function that replays it.

    Run `body` before on its own stream (`warm_up`). Capturing does not execute it.

    Args:
        body: launches work on the GPU and never waits for it.
        generator: that it draws from besides PyTorch's own; each replay draws new numbers.
    """
    gc.collect()  # frees an earlier run's graph, which is in a cycle of references
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    drawn_from = [] if generator is None else [generator]
    if torch.cuda.is_available():
        drawn_from.append(torch.cuda.default_generators[torch.cuda.current_device()])
    before = [each.clone_state() for each in drawn_from]
    try:
        with torch.cuda.graph(graph):
            body()
    except BaseException:
        # A capture that breaks off leaves generators in the state of capturing, which refuses
        # every draw outside of a graph.
        for each, state in zip(drawn_from, before, strict=True):
            each.graphsafe_set_state(state)
        raise
    return graph.replay


def warm_up(body: Callable[[], None]) -> None:
    """Run a body a few times on its own stream, so that nothing is set up during the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            body()
    torch.cuda.current_stream().wait_stream(side)


class CapturedStep:
    """A `Step` on a GPU, captured in a CUDA graph: same draws, same numbers up to rounding.

    The first call captures. After that, write into networks and states but do not replace them. So
    load a state before the first step.

    Args:
        step: with its network on the GPU.
        compiled: also compile forward and loss, which takes about a minute.
    """

    def __init__(self, step: Step, compiled: bool) -> None:
        self.step = step
        self.how = "eager"
        self._ways = ([("compiled and captured", _compile)] if compiled else []) + [
            ("captured", lambda plain: plain)
        ]
        self._replay: Callable[[], None] | None = None

    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        draw: MixDraw | None,
        lr: float,
        generator: torch.Generator | None = None,
        taught: Tensor | None = None,
    ) -> None:
        """Take one step. Arguments as for `Step`, with the same shapes and types in every call."""
        while self._replay is None and self._ways:
            self._capture(images, targets, draw, generator, taught)
        if self._replay is None:
            self.step(images, targets, draw, lr, generator, taught)
            return
        given = _given(images, targets, draw, taught)
        for static, new in zip(self._static, given, strict=True):
            static.copy_(new)
        self._lr.fill_(lr)
        self._replay()

    def _capture(
        self,
        images: Tensor,
        targets: Tensor,
        draw: MixDraw | None,
        generator: torch.Generator | None,
        taught: Tensor | None,
    ) -> None:
        """Try the first remaining way to capture, and remove it from the list."""
        step = self.step
        how, prepare = self._ways.pop(0)
        images, targets = images.clone(), targets.clone()
        if draw is not None:
            draw = deepcopy(draw)
        if taught is not None:
            taught = taught.clone()
        self._static = _given(images, targets, draw, taught)
        self._lr = torch.zeros((), device=step.device)
        before = _Snapshot(step, generator)
        plain = step.loss_of

        def body() -> None:
            step.set_lr(self._lr)  # read by the kernel at every replay
            step.update(images, targets, draw, generator, taught)

        try:
            step.loss_of = prepare(plain)
            with torch.random.fork_rng([step.device] if step.device.type == "cuda" else []):
                warm_up(body)
            before.restore()
            self._replay, self.how = capture(body, generator), how
        except Exception as error:  # driver, compiler and library raise different classes
            before.restore()
            step.loss_of = plain
            step.optimizer.zero_grad()
            left = self._ways[0][0] if self._ways else "eager, which is slower"
            say(f"the training step cannot be {how} ({_reason(error)}); going on {left}")


def _reason(error: BaseException) -> str:
    """Return one line about the first error, which a failed capture hides behind its own."""
    while cause := getattr(error, "inner_exception", None) or error.__cause__ or error.__context__:
        error = cause
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _given(
    images: Tensor, targets: Tensor, draw: MixDraw | None, taught: Tensor | None
) -> list[Tensor]:
    return [part for part in (images, targets, *(draw or ()), taught) if part is not None]


def _compile(loss_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # One process may train many networks of a sweep, and each needs its own compilation.
    # The limit is that of the whole process, and only raised.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    # With it, dropout draws the same numbers as without the compiler.
    return torch.compile(loss_of, fullgraph=True, dynamic=False, options={"fallback_random": True})


class _Snapshot:
    """The state of a step that warming up changes."""

    def __init__(self, step: Step, generator: torch.Generator | None) -> None:
        self._step = step
        self._saved = [(tensor, tensor.clone()) for tensor in self._tensors()]
        self._hooks = [deepcopy(hook.state_dict()) for hook in step.hooks]
        self._generator = generator
        self._drawn = None if generator is None else generator.get_state()
        self._moments = {id(each): each.clone() for each in _moments(step.optimizer)}

    def _tensors(self) -> Iterable[Tensor]:
        return (*self._step.network.state_dict().values(), self._step.loss, self._step.penalty)

    def restore(self) -> None:
        """Write the saved state back in place. Set momentum to 0 that did not exist before."""
        with torch.no_grad():
            for tensor, saved in self._saved:
                tensor.copy_(saved)
            for each in _moments(self._step.optimizer):
                if id(each) in self._moments:
                    each.copy_(self._moments[id(each)])
                else:
                    each.zero_()
        for hook, state in zip(self._step.hooks, self._hooks, strict=True):
            hook.load_state_dict(state)
        if self._generator is not None and self._drawn is not None:
            self._generator.set_state(self._drawn)


def _moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return every state tensor of the optimiser, such as momentum."""
    states = optimizer.state.values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


class CapturedTop1:
    """The top-1 accuracy of a network in training, on the same images at every call.

    It reads the current weights in float32, without folding batch norm.

    Args:
        model: on the GPU.
        data: on the GPU. Both must stay at their addresses.
    """

    def __init__(self, model: Network, data: ImageSet) -> None:
        self.model, self.data = model, data
        self._found = torch.zeros(2, dtype=torch.int64, device=data.images.device)
        self._replay: Callable[[], None] | None = None

    def __call__(self) -> float:
        """Return the fraction of correct images.

        Raises:
            NotFiniteError: a logit is NaN or infinite.
        """
        self.model.eval()
        if self._replay is None:
            try:
                warm_up(self._rate)
                self._replay = capture(self._rate, None)
            except Exception as error:  # as above
                reason = _reason(error)
                say(f"rating validation images cannot be captured ({reason}); going on without")
                self._replay = self._rate
        self._replay()
        correct, damaged = self._found.tolist()
        if damaged:
            raise NotFiniteError(
                "the network's logits hold NaN or infinite values, so it cannot be rated"
            )
        return correct / len(self.data)

    @torch.no_grad()
    def _rate(self) -> None:
        self._found.zero_()
        data = self.data
        parts = (tensor.split(GPU_BATCH_SIZE) for tensor in (data.images, data.targets))
        for images, targets in zip(*parts, strict=True):
            inputs = normalize(images).contiguous(memory_format=torch.channels_last)
            logits = self.model(inputs)
            correct = (logits.argmax(1) == targets).sum()
            damaged = (~logits.isfinite()).sum()
            self._found += torch.stack((correct, damaged))


def fastest_step(step: Step, num_steps: int) -> "Step | CapturedStep":
    """Return the step as it runs fastest on its device: captured on a GPU, as it is on a CPU.

    A step whose network cannot be captured is not tried: failing takes a minute with the compiler.
    """
    if step.device.type != "cuda" or not step.network.capturable:
        return step
    return CapturedStep(step, compiled=num_steps >= WORTH_COMPILING)


def fastest_top1(model: Network, data: ImageSet) -> Callable[[], float]:
    """Return a function that rates the network: captured on a GPU if it can be, else `evaluate`."""
    if data.images.device.type != "cuda" or not model.capturable:
        return lambda: evaluate(model, data).top1
    return CapturedTop1(model, data)
