"""A child process for chat templates, under limits that the system enforces.

It is started when the first template is rendered, kept for the next one, and ended when it overruns, when its owner is
gone, or when this process is. It is started by exec, not by a bare fork, so threads of this process do not matter; a
fork of this process starts one of its own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from dsv3c.runtime.errors import MessagesInvalid, TemplateFailed, TemplateProcessMissing, TemplateTooCostly

FAILED, COSTLY = b"f", b"c"  # kinds of answers, besides texts
MEMORY = 192 << 20  # for templates; Python and jinja2 take about 25 MB besides
_PACKAGES = ("jinja2", "markupsafe")
_WORKER = Path(__file__).with_name("template_worker.py")
_START = "import runpy, sys; sys.path += sys.argv[3:]; runpy.run_path(sys.argv[1], run_name='__main__')"
_START_SECONDS = 30.0
_WAIT_SECONDS = 3.0  # beyond the CPU time, for a machine that is busy
_WATCH_SECONDS = 0.02
_REQUEST_LIMIT = 32 << 20
_ANSWER_LIMIT = 80 << 20  # a text of the most characters, in UTF-8
_CHUNK = 1 << 16


class TemplateProcess:
    """Renders templates one after the other. Threads may share it."""

    def __init__(self) -> None:
        self._home = _Home()

    def render(self, request: bytes, seconds: float) -> str:
        """The answer to a request, as template_worker.py has it, that may take so much CPU time.

        Raises MessagesInvalid, TemplateFailed, TemplateTooCostly, TemplateProcessMissing.
        """
        if len(request) > _REQUEST_LIMIT:
            raise MessagesInvalid(reason=f"as JSON they take {len(request)} bytes, at most {_REQUEST_LIMIT} can be")
        if self._home.pid != os.getpid():  # this process is a fork: the child belongs to the one it came from
            self._home = _Home()
        kind, text = self._home.ask(request, seconds)
        if kind == FAILED:
            raise TemplateFailed(reason=text)
        if kind == COSTLY:
            raise TemplateTooCostly(reason=text)
        return text


class _Home:
    """The child of one process, and the lock that its threads take turns by."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def ask(self, request: bytes, seconds: float) -> tuple[bytes, str]:
        with self._lock:
            if self._child is None or self._child.ended:
                self._child = _start()
            child, self._child = self._child, None
            try:
                answer = child.ask(request, seconds + _WAIT_SECONDS)
            except BaseException:  # an interruption: half an answer would be taken for the next one's
                child.end()
                raise
            if answer is None:
                return COSTLY, _what_it_did(child.end(), seconds)
            kind, text = answer[:1], answer[1:].decode("utf-8", "surrogatepass")
            if kind == COSTLY:  # what it holds now is not known
                child.end()
            else:
                self._child = child
            return kind, text


class _Child:
    def __init__(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        # In a group of its own: Ctrl-C in a terminal is for those who wait for it.
        self._process = subprocess.Popen(
            command, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, process_group=0
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("pipes were asked for")
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)
        self._release = weakref.finalize(self, _release, self._process, os.getpid())

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, request: bytes | None, seconds: float) -> bytes | None:
        """The answer to a request, the first one without. None: none came within so many seconds."""
        until = time.monotonic() + seconds
        waiting = memoryview(b"" if request is None else len(request).to_bytes(4, "big") + request)
        answer = bytearray()
        ready = select.poll()  # select() knows only the first 1024 descriptors of a process
        ready.register(self._output, select.POLLIN)
        if waiting:
            ready.register(self._input, select.POLLOUT)
        while not (size := _size(answer)) or len(answer) < size:
            if time.monotonic() > until or size > _ANSWER_LIMIT or _resident_bytes(self._process.pid) > MEMORY:
                return None
            for descriptor, _ in ready.poll(1000 * _WATCH_SECONDS):
                if descriptor == self._output:
                    part = os.read(descriptor, _CHUNK)
                    if not part:
                        return None
                    answer += part
                    continue
                try:
                    waiting = waiting[os.write(descriptor, waiting[:_CHUNK]) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    return None
                if not waiting:
                    ready.unregister(descriptor)
        return bytes(answer[4:])

    def end(self) -> int:
        """Ends it, if it has not ended by itself: its exit code, negative for a signal."""
        try:
            self._process.wait(0.1)  # its output is closed a moment before it is gone
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._release()
        return self._process.wait()


def _size(answer: bytearray) -> int:
    """Bytes of the frame that begins with these; 0 while that is not known."""
    return 4 + int.from_bytes(answer[:4], "big") if len(answer) >= 4 else 0


def _release(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:
        process.kill()
        process.wait()
    else:  # a fork, whose child it is not
        process.returncode = 0
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _what_it_did(code: int, seconds: float) -> str:
    if code in (-signal.SIGPROF, -signal.SIGKILL):
        return f"it runs for more than {seconds:g} seconds, or takes more than {MEMORY >> 20} MB of memory"
    return f"it ended the process that renders it (exit code {code})"


def _start() -> _Child:
    """Raises TemplateProcessMissing."""
    folders = [_folder(name) for name in _PACKAGES]
    tried = []
    for python in _interpreters():
        command = [python, "-I", "-S", "-c", _START, str(_WORKER), str(MEMORY), *folders]
        try:
            child = _Child(command)
        except OSError as error:
            tried.append(f"{python}: {error.strerror}")
            continue
        if child.ask(None, _START_SECONDS) is not None:
            return child
        tried.append(f"{python}: exit code {child.end()}")
    raise TemplateProcessMissing(reason="; ".join(tried) or "no Python was found")


def _folder(package: str) -> str:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise TemplateProcessMissing(reason=f"the package {package} is not installed")
    return str(Path(found.origin).parents[1])


def _interpreters() -> Iterator[str]:
    """Programs that may be a Python: what the user names, or else this one, unless a program that Python is embedded in
    says that it were one, and those of the installation."""
    named = os.environ.get("DSV3C_PYTHON")
    if named:
        yield named
        return
    if re.match(r"(python|pypy)[\d.]*$", Path(sys.executable or "").name, re.IGNORECASE):
        yield sys.executable
    names = (f"python{sys.version_info.major}.{sys.version_info.minor}", "python3")
    paths = [Path(prefix, "bin", name) for prefix in (sys.prefix, sys.base_prefix) for name in names]
    yield from dict.fromkeys(str(path) for path in paths if os.path.isfile(path) and str(path) != sys.executable)


class _Usage(ctypes.Structure):
    """rusage_info_v0 of macOS (sys/resource.h)."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        *((f"before_{number}", ctypes.c_uint64) for number in range(7)),
        ("phys_footprint", ctypes.c_uint64),
        *((f"behind_{number}", ctypes.c_uint64) for number in range(2)),
    )


def _resident_bytes(pid: int) -> int:
    """Memory of a process on macOS, which does not enforce a limit; 0 elsewhere."""
    if sys.platform != "darwin":
        return 0
    usage = _Usage()
    ctypes.CDLL(None).proc_pid_rusage(pid, 0, ctypes.byref(usage))
    return int(usage.phys_footprint)
