"""Jobs in child processes: LLVM ends its whole process when a file cannot be written, and that must not be ours."""

from __future__ import annotations

import ctypes
import os
import pickle
import selectors
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from dsv3c.compiler.errors import CompilerFault, Dsv3cError, NoRoomError
from dsv3c.compiler.tools import no_room

_FATAL = b"LLVM ERROR"
_RESULT = b"\0dsv3c\0"  # on the channel, before the error that a job raised
_CHUNK = 1 << 16
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class JobDied(CompilerFault):
    message = "a process that builds kernels ended with {how}: {said}"
    hint = "if memory is short, close other programs; else this is a fault of LLVM or of dsv3c"


@dataclass
class _Child:
    """channel: what the process writes to stderr, then the error it ended with; told: how much was passed on."""

    number: int
    pid: int
    channel: int
    data: bytearray = field(default_factory=bytearray)
    told: int = 0


def in_children(
    jobs: Sequence[Callable[[], object]],
    done: Callable[[int], None],
    what: Path,
    failed: Callable[[int, Exception], None] = lambda number, error: None,
) -> None:
    """Run each job in a process of its own, as many at once as there are CPUs; `done(number)` after each, here.

    A child is a copy of this process, so nothing is sent to it; no other thread may be inside of LLVM meanwhile. what:
    is being written, for errors. Raises what a job raised, NoRoomError, JobDied, after `failed(number, error)`; no
    child is left then.
    """
    with closing(_ended(jobs)) as ended:
        for child in ended:
            try:
                _finish(child, what)
            except Exception as error:
                ended.close()
                failed(child.number, error)
                raise
            done(child.number)


def _ended(jobs: Sequence[Callable[[], object]]) -> Generator[_Child, None, None]:
    """The jobs' processes as they end, to be waited for; those that still run at the close are ended."""
    waiting, running = list(enumerate(jobs))[::-1], dict[int, _Child]()
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    child = _start(*waiting.pop())
                    running[child.pid] = child
                    selector.register(child.channel, selectors.EVENT_READ, child)
                for key, _ in selector.select():
                    if _read(key.data):
                        continue
                    selector.unregister(key.fd)
                    yield running.pop(key.data.pid)
        finally:
            for child in running.values():
                _kill(child)


def _start(number: int, job: Callable[[], object]) -> _Child:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # else both would write what is held back
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run(job, write)
    os.close(write)
    with suppress(OSError):
        os.setpgid(pid, pid)
    return _Child(number, pid, read)


def _run(job: Callable[[], object], channel: int) -> NoReturn:
    """In the child. Its group is its own, so that what it starts can be ended with it."""
    code = 1
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        _leave_at_once()
        os.dup2(channel, 2)
        sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="replace")
        job()
        code = 0
    except BaseException as error:
        with open(channel, "wb", closefd=False) as file:
            file.write(_RESULT + _pickled(error))
    finally:
        os._exit(code)


def _leave_at_once() -> None:
    """LLVM ends its process by exit(1). What other libraries would then do waits for threads that stayed behind: what
    is registered last runs first, and ends it."""
    system = ctypes.CDLL(None)
    register = system["__cxa_atexit"]
    register.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    register(ctypes.cast(system["_exit"], ctypes.c_void_p), 1, None)


def _pickled(error: BaseException) -> bytes:
    if isinstance(error, Dsv3cError):
        return pickle.dumps((type(error), vars(error)))
    with suppress(Exception):
        return pickle.dumps(error)
    return pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))


def _read(child: _Child) -> bool:
    """Take what the child wrote, and pass on what is for the user; False when it has ended."""
    chunk = os.read(child.channel, _CHUNK)
    child.data += chunk
    ends = [at for at in (child.data.find(mark) for mark in (_FATAL, _RESULT)) if at >= 0]
    # A mark may be cut in two: whole lines go out.
    end = min([*ends, child.data.rfind(b"\n") + 1])
    if end > child.told and sys.stderr is not None:
        sys.stderr.write(child.data[child.told : end].decode(errors="replace"))
        sys.stderr.flush()
    child.told = max(child.told, end)
    return bool(chunk)


def _finish(child: _Child, what: Path) -> None:
    os.close(child.channel)
    code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    _kill_group(child)  # a program that it gave up on
    if code == 0:
        return
    said, _, result = bytes(child.data).partition(_RESULT)
    if result:
        error = pickle.loads(result)
        raise error[0](**error[1]) if isinstance(error, tuple) else error
    text = said[said.rfind(_FATAL) :].decode(errors="replace").strip() if _FATAL in said else ""
    if reason := no_room(text, code):
        raise NoRoomError(path=what, reason=reason)
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    raise JobDied(how=how, said=text or "it said nothing")


def _kill(child: _Child) -> None:
    os.close(child.channel)
    _kill_group(child)
    os.waitpid(child.pid, 0)


def _kill_group(child: _Child) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
