"""What both command lines share, the runtime's and the compiler's: how a group runs, and how a fault is told."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

import click

from dsv3c.runtime.cli import interrupt
from dsv3c.runtime.cli.output import writing_output
from dsv3c.runtime.errors import Dsv3cError

DONE, FAULT = 0, 1
DEBUG_LEVELS = "01234"
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_AGAIN_SECONDS = 0.01
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_HINTS = {
    errno.ENOSPC: "make room, or write to another disk",
    errno.EDQUOT: "make room, or write to another disk",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or write to another disk",
}
_NO_MEMORY = ("failed to map segment", "cannot allocate memory")
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Terminated(BaseException):
    """A signal asked the command to end; what it was doing is cleaned up on the way out, as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class InOrder(click.Group):
    """Lists the commands in the order in which one uses them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class Command(click.Command):
    """A command of either program: PROGRAM in its help stands for the name of the one that runs.

    sections: titles with the names of the options that the help lists below them, in this order; the others come last.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._sections = sections or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {option.name: option.get_help_record(ctx) for option in options}
        for title, names in self._sections.items():
            _write_options(formatter, title, [records.pop(name, None) for name in names])
        _write_options(formatter, "Options", records.values())

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace("PROGRAM", ctx.find_root().info_name or "dsv3c")


def _write_options(formatter: click.HelpFormatter, title: str, records: Iterable[tuple[str, str] | None]) -> None:
    shown = [record for record in records if record is not None]
    if shown:
        with formatter.section(title):
            formatter.write_dl(shown)


def run(root: click.Command, args: Sequence[str] | None, program: str) -> int:
    """Runs one command line and returns its exit code; errors are told on stderr, without a traceback."""
    debug = os.environ.get("DSV3C_DEBUG") or "0"
    if debug not in tuple(DEBUG_LEVELS):
        _tell(f"error: DSV3C_DEBUG is {debug!r}; expected a number from 0 to {DEBUG_LEVELS[-1]}")
        return FAULT
    try:
        with _heeding_signals():
            code = root.main(args, prog_name=program, standalone_mode=False)
        with writing_output():
            for stream in _streams():
                stream.flush()
        return code if isinstance(code, int) else DONE
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _tell(interrupt.TOLD)
        return interrupt.INTERRUPTED
    except Terminated as error:
        _tell("terminated")
        return error.exit_code
    except BrokenPipeError:
        return FAULT
    except Exception as error:
        if debug != "0":
            _tell(traceback.format_exc().rstrip())
        message = str(error) if isinstance(error, Dsv3cError) else _explain(error)
        _tell("\n  ".join([f"error: {message}", *getattr(error, "__notes__", ())]))
        return FAULT
    finally:
        _drop_unwritten()


class _Signals:
    """What signals do to a command: they raise KeyboardInterrupt or Terminated, the latter once, as another one must
    not interrupt the cleaning up.

    They wait for the end of an import: packages in C print what is raised there, and make an ImportError of it; and for
    the end of what no exception can leave, such as a finaliser.
    """

    def __init__(self) -> None:
        self._heeded = False
        self._again: threading.Timer | None = None
        self.hook = sys.unraisablehook  # as it was

    def end(self, number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            self._send_again(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        elif not self._heeded:
            self._heeded = True
            raise Terminated(number)

    def unraisable(self, found: Any) -> None:
        """Stands for sys.unraisablehook."""
        if isinstance(found.exc_value, KeyboardInterrupt):
            self._send_again(signal.SIGINT)
        elif isinstance(found.exc_value, Terminated):
            self._heeded = False
            self._send_again(found.exc_value.exit_code - 128)
        else:
            self.hook(found)

    def heed(self) -> None:
        """Raises what still waits."""
        if self._again is not None and self._again.is_alive():
            self._again.join()
            time.sleep(0)  # the handler runs

    def _send_again(self, number: int) -> None:
        self._again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
        self._again.daemon = True
        self._again.start()


@contextmanager
def _heeding_signals() -> Iterator[None]:
    """As `_Signals` says. A signal that somebody ignores (nohup) or handles stays as it is, and so do all outside of
    the main thread."""
    signals = _Signals()
    main = threading.current_thread() is threading.main_thread()
    usual: dict[int, tuple[Any, ...]] = dict.fromkeys(_ENDING, (signal.SIG_DFL,))
    usual[signal.SIGINT] = (signal.default_int_handler, interrupt.end)
    before = {number: signal.getsignal(number) for number in usual}
    taken = {number: handler for number, handler in before.items() if main and handler in usual[number]}
    try:
        sys.unraisablehook = signals.unraisable
        for number in taken:
            signal.signal(number, signals.end)
        yield
        signals.heed()
    finally:
        sys.unraisablehook = signals.hook
        for number, handler in taken.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    """Whether what runs in `frame` is part of an import that a command began."""
    while frame is not None and frame.f_code is not run.__code__:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def _lacks_memory(error: Exception) -> bool:
    """Whether a package could not be imported for want of memory: libraries are not mapped then, or halves of modules
    are missing."""
    if not isinstance(error, ImportError):
        return False
    import resource  # not on every system

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return limit != resource.RLIM_INFINITY or any(sign in str(error).lower() for sign in _NO_MEMORY)


def prepare_streams() -> None:
    """A story may have letters that the terminal's encoding lacks: they are replaced.

    The numbers of standard streams that the shell closed are taken: else a file that is opened would get them, and what
    is printed.
    """
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    with suppress(OSError):  # a system without /dev
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)


def _streams() -> list[TextIO]:
    """stdout and stderr; None stands for one that the shell closed: >&-."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def _tell(text: str) -> None:
    with suppress(OSError):
        click.echo(text, err=True)


def _drop_unwritten() -> None:
    """Python flushes once more at its end, and would complain and end with another code."""
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _has_place() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _explain(error: Exception) -> str:
    """What, where and what to do, for a person."""
    if isinstance(error, FileNotFoundError) and not _has_place():
        return "the current folder does not exist any more\n  hint: change into another folder and try again"
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        hint = _HINTS.get(error.errno or 0)
        return f"{error.strerror}{where}" + (f"\n  hint: {hint}" if hint else "")
    if isinstance(error, MemoryError) or _lacks_memory(error):
        where = "" if isinstance(error, ImportError) or not str(error) else f": {error}"
        return f"out of memory{where}\n  hint: `dsv3c plan` says what a model needs; `ulimit -v` says what is allowed"
    if isinstance(error, ImportError):
        said = " ".join(str(error).split())
        return (
            f"a package cannot be imported: {said[:300]}\n  hint: `dsv3c doctor` lists the packages; install it again"
        )
    hint = "this is a fault of dsv3c; DSV3C_DEBUG=1 shows where"
    return f"{type(error).__name__}: {error}\n  hint: {hint}"
