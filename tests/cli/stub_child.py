"""A child process that behaves as its first argument says; for the tests of the launcher and the watcher."""

import os
import signal
import sys

from engine_core.ipc.control import ControlLink, Drain, Failed, LinkClosed, Progress, Ready


def main() -> None:
    mode, link = sys.argv[1], ControlLink.from_fd(int(sys.argv[sys.argv.index("--link-fd") + 1]))
    link.send(Progress(stage="weights", done=1, total=1, unit="B"))
    if mode == "fail":
        link.send(Failed(message="It cannot be.", exit_code=2))
        sys.exit(2)
    if mode == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "leave":
        sys.exit(3)
    link.send(Ready())
    os.set_blocking(link.fileno(), True)
    if mode == "stubborn":
        signal.pause()
    try:
        message = link.receive()
    except LinkClosed:
        sys.exit(0)
    assert isinstance(message, Drain)
    sys.exit(0 if message.timeout == 1.5 else 4)


main()
