"""Ctrl-C ends the command line in one line, with status 130.

`micronet_lib.__main__` imports this module before any other, because imports take a while too. It
changes nothing in a process that is not the command, such as a test or a notebook.
"""

import os
import sys

STOPPED = "micronet: stopped"
_folder, _program = os.path.split(sys.argv[0])
IS_COMMAND = _program.startswith("micronet") or (
    _program == "__main__.py" and os.path.basename(_folder) == "micronet_lib"  # noqa: PTH119
)


def _end() -> None:
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(130)


try:
    import signal
    from types import FrameType
except KeyboardInterrupt:
    if not IS_COMMAND:
        raise
    _end()

_may_raise = False


def _stop(number: int, frame: "FrameType | None") -> None:
    """Handle Ctrl-C: interrupt the verb, or end the process at once.

    At once before the verb, at a second Ctrl-C, and while a module is being imported: some
    libraries catch all exceptions during their import and continue.
    """
    global _may_raise
    importing = False
    while frame is not None and not importing:
        importing = frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    if importing or not _may_raise:
        _end()
    _may_raise = False
    raise KeyboardInterrupt


def handle() -> None:
    """Let Ctrl-C end this process, unless it is handled otherwise or ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def may_interrupt() -> None:
    """Let the next Ctrl-C raise `KeyboardInterrupt`: a verb begins, which may have to clean up."""
    global _may_raise
    _may_raise = True


def all_is_said(status: int) -> None:
    """Let a Ctrl-C from now on end the process with its own status, and without a traceback."""
    global _may_raise
    _may_raise = False
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, lambda *_: os._exit(status))


if IS_COMMAND:
    handle()
