"""The processes in which requests are prepared, from their own side.

A frontend forks once, before it has a second thread: the forking process has the tokenizer and the templates in memory
that all share, and forks a preparation process whenever it is sent a socket for one. A preparation process does one job
after the other until the socket ends. Requests bring templates and patterns, so the kernel bounds what a job may take:
one that takes more ends its process.
"""

import ctypes
import gc
import importlib
import logging
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable
from typing import NoReturn

import msgspec

from frontend.errors import ApiError, bad_request
from frontend.preparation.jobs import decode_job
from frontend.preparation.preparer import Preparer

JOB_SECONDS = 10.0
"""Of a processor's time for one job."""
JOB_BYTES = 2 * 2**30
"""Of address space, beyond what the process has at its start."""
_KEPT_BYTES = 512 * 2**20
"""A process that has taken more is not used again."""
_PR_SET_PDEATHSIG = 1
_PAGE = os.sysconf("SC_PAGE_SIZE")
JOB_HEADER = struct.Struct("<Q")
"""Before a job: its length."""
REPLY_HEADER = struct.Struct("<Q?")
"""Before a reply: its length, and whether the process ends with it."""
GREETING = struct.Struct("<i")
"""The first that a process writes: its id."""

logger = logging.getLogger(__name__)


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The job's `ApiError`."""

    status: int
    message: str
    param: str | None
    code: str | None
    headers: dict[str, str]


class Done(msgspec.Struct, tag=True, frozen=True):
    """`result`: msgpack of the job's result."""

    result: bytes


Reply = Done | Refused


def fork_forker(preparer: Preparer) -> socket.socket:
    """Starts the process that forks. It makes a preparation process of each stream socket whose descriptor it is sent,
    and ends with the socket that is returned."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        _never_return(lambda: fork_on_demand(theirs, preparer), theirs)
    theirs.close()
    return ours


def _never_return(serve: Callable[[], None], sock: socket.socket) -> NoReturn:
    """The rest of a forked process' life. What its parent has open is no business of its own."""
    try:
        os.closerange(3, sock.fileno())
        os.closerange(sock.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        serve()
    except (BrokenPipeError, ConnectionResetError):
        pass
    except BaseException:  # the process' entry: nobody else would say what went wrong
        logger.exception("A preparation process failed.")
    finally:
        os._exit(0)


def fork_on_demand(control: socket.socket, preparer: Preparer) -> None:
    """The life of the process that forks: a preparation process for each socket that comes, until `control` ends. To be
    called in a process with one thread."""
    end_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what was forked
    for module in ("llguidance", "llguidance.gbnf_to_lark"):
        importlib.import_module(module)
    gc.freeze()  # what is shared is not written to by looking at it
    while fds := socket.recv_fds(control, 1, 1)[1]:
        sock = socket.socket(fileno=fds[0])
        try:
            is_child = os.fork() == 0
        except OSError as error:
            logger.warning("No preparation process could be started: %s.", error.strerror)
            is_child = False
        if is_child:
            _never_return(lambda sock=sock: _serve(sock, preparer), sock)  # type: ignore[misc]
        sock.close()


def _serve(sock: socket.socket, preparer: Preparer) -> None:
    end_with_parent()
    with open("/proc/self/statm", "rb") as file:
        at_start = int(file.read().split()[0]) * _PAGE
    resource.setrlimit(resource.RLIMIT_AS, (at_start + JOB_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    sock.sendall(GREETING.pack(os.getpid()))
    resident = _max_resident()
    is_last = False
    while not is_last and (header := _receive(sock, JOB_HEADER.size)):
        frame = _receive(sock, *JOB_HEADER.unpack(header))
        # The default of SIGPROF ends the process, also where it is not in Python.
        signal.setitimer(signal.ITIMER_PROF, JOB_SECONDS)
        reply = answer(frame, preparer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        is_last = _max_resident() > resident + _KEPT_BYTES
        sock.sendall(REPLY_HEADER.pack(len(reply), is_last))
        sock.sendall(reply)


def answer(frame: bytes | bytearray, preparer: Preparer) -> bytes:
    """One job's reply, in msgpack."""
    reply: Reply
    try:
        reply = Done(msgspec.msgpack.encode(decode_job(frame).run(preparer)))
    except ApiError as error:
        reply = Refused(error.status, error.message, error.param, error.code, error.headers)
    except (MemoryError, RecursionError) as error:
        what = "memory" if isinstance(error, MemoryError) else "depth"
        refusal = bad_request(f"This request needs more {what} to be prepared than one may have.")
        reply = Refused(refusal.status, refusal.message, None, None, {})
    except Exception:  # a fault of ours costs its request, like one in a handler
        logger.exception("A request could not be prepared.")
        reply = Refused(500, "The server failed to answer this request.", None, "internal_error", {})
    return msgspec.msgpack.encode(reply)


def _receive(sock: socket.socket, num_bytes: int) -> bytearray:
    """That many bytes; none at the end of the stream."""
    data = bytearray(num_bytes)
    view = memoryview(data)
    num_read = 0
    while num_read < num_bytes:
        count = sock.recv_into(view[num_read:])
        if count == 0:
            return bytearray()
        num_read += count
    return data


def end_with_parent() -> None:
    """Whatever ends the parent, at whatever this process is."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _max_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
