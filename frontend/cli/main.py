"""The `quire` command's start. It imports next to nothing, so that Ctrl-C ends it quietly while it imports the rest."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def main(argv: Sequence[str] | None = None) -> int:
    """The console script: runs the subcommand and returns the exit code."""
    try:
        with _plain_interrupts():
            from frontend.cli import commands
        return commands.main(argv)
    except KeyboardInterrupt:
        return 130


@contextmanager
def _plain_interrupts() -> Iterator[None]:
    """Ctrl-C ends the process as it ends one that is not Python's: within an import, Python's exception can end up in
    somebody's callback and be printed there. A program's own handler is left as it is."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
