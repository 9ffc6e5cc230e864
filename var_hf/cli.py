"""Entry point and exit codes of the command ``var-hf``. ``var_hf.cli_app`` has the commands.

Large libraries are imported only when a command runs, so ``--help`` is fast. Results go to stdout,
messages and progress bars to stderr. Exit codes: 0 success, 1 an error, in one line on stderr, 2 an
invalid command line, 130 an interrupt, 143 a termination. Files appear complete or not at all.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

_INTERRUPTED = 128 + signal.SIGINT
_RETRY_AFTER = 0.05  # seconds


class Interrupts:
    """Makes Ctrl+C end the process in all code, even where exceptions are suppressed.

    Attributes:
        seen: Whether Ctrl+C was pressed.
    """

    def __init__(self) -> None:
        self.seen = False

    def install(self) -> None:
        """Handle SIGINT unless it is ignored, as in a background job."""
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._raise)
            if hasattr(signal, "pthread_kill"):  # Windows has none
                sys.unraisablehook = self._retry

    def _raise(self, number: int, frame: Any) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def _retry(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Interrupt again a moment later: Python drops exceptions in destructors and callbacks."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            main_thread = threading.main_thread().ident
            timer = threading.Timer(_RETRY_AFTER, signal.pthread_kill, [main_thread, signal.SIGINT])
            timer.daemon = True
            timer.start()
        elif not self.seen:
            sys.__unraisablehook__(unraisable)


def main() -> None:
    """Run the command line of this process and exit."""
    interrupts = Interrupts()
    try:
        interrupts.install()
        # A batch system's SIGTERM then ends like an interrupt, which removes half-written files.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        exit_code = run(sys.argv[1:], interrupts)
    except KeyboardInterrupt:
        exit_code = _INTERRUPTED
    if exit_code == 0:
        leave_process_group()
    # There is nothing left to clean up. Ctrl+C now ends the process at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(exit_code)


def leave_process_group() -> None:
    """Leave the group of torch's processes, if there is one.

    Its threads could otherwise abort a process whose interpreter is ending.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def run(arguments: Sequence[str], interrupts: Interrupts | None = None) -> int:
    """Run a command line.

    An error is one line on stderr. `--debug` or `VAR_HF_DEBUG=1` adds its traceback.

    Args:
        arguments: The arguments after `var-hf`.
        interrupts: Records whether the user pressed Ctrl+C, which libraries may turn into other
            errors.

    Returns:
        The exit code.

    Raises:
        KeyboardInterrupt: The user interrupted.
    """
    remaining = [argument for argument in arguments if argument != "--debug"]
    debug = len(remaining) < len(arguments) or os.environ.get("VAR_HF_DEBUG", "0") != "0"
    leave_torchao_out()
    import typer

    from var_hf.cli_app import app

    try:
        return app(remaining or ["--help"], prog_name="var-hf", standalone_mode=False) or 0
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "var-hf"
        _report(f"{error.format_message().rstrip('.')}. See {command} --help.")
        return error.exit_code
    except Exception as error:
        if interrupts is not None and interrupts.seen:
            return _INTERRUPTED
        if debug:
            import traceback

            traceback.print_exc()
        _report(_message(error))
        return 1


def leave_torchao_out() -> None:
    """Keep diffusers and transformers from importing torchao.

    They import it if it is installed, which takes time and causes warnings about libraries for
    other devices. Only quantized models need it.
    """
    # None makes Python refuse the import of a module.
    sys.modules.setdefault("torchao", None)  # type: ignore[arg-type]


def _message(error: Exception) -> str:
    if isinstance(error, ImportError | OSError | ValueError):
        return str(error)
    text = f"unexpected {type(error).__name__}: {error}".rstrip(" .:")
    return f"{text}. Repeat the command with --debug to see where it happened."


def _report(message: str) -> None:
    from var_hf.text import printable

    line = " ".join(printable(word, limit=1000) for word in message.split())
    sys.stderr.write(f"var-hf: {line}\n")


if __name__ == "__main__":
    main()
