"""`dsv3c chat`: a conversation in the terminal, or through a pipe."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from dsv3c.runtime.cli import decoding
from dsv3c.runtime.cli.group import DONE, FAULT, Command
from dsv3c.runtime.cli.guided import NAMES, guided_options
from dsv3c.runtime.cli.output import echo
from dsv3c.runtime.cli.params import PATH, device_options, numa_option, threads_option
from dsv3c.runtime.errors import Dsv3cError

if TYPE_CHECKING:
    from dsv3c.runtime.cli.conversation import Conversation
    from dsv3c.runtime.text.thoughts import Piece

Reader = Callable[[bool], str | None]  # a line, given whether it goes on with a text; None: there is no more
_BLOCK = '"""'
_QUIT = ("/quit", "/exit", "/bye")
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_MACHINE = ("context", "threads", "numa", "device", "gpu_layers", "cpu_artifact")
_LEFT_OUT = ("max_new_tokens", "num_return_sequences", "logprobs")


@click.command("chat", cls=Command, sections={**decoding.SECTIONS, "Structure": NAMES, "Machine": _MACHINE})
@click.argument("artifact", type=PATH)
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--load", metavar="FILE", help="Go on with a conversation that /save wrote.")
@click.option(
    "-n",
    "--max-new-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of an answer at most.  [default: what the context holds]",
)
@decoding.options_but(*_LEFT_OUT)
@guided_options
@click.option("--context", type=click.IntRange(min=1), metavar="N", help="Tokens that the conversation may have.")
@threads_option()
@numa_option
@device_options
def chat_command(
    artifact: Path,
    system: str | None,
    load: str | None,
    context: int | None,
    threads: int | None,
    numa: str,
    device: str | None,
    gpu_layers: int | None,
    cpu_artifact: Path | None,
    **options: Any,
) -> int:
    """Talk to an ARTIFACT of a model with a chat template.

    /help lists the commands: /reset, /system, /save, /load, /params, /stats. A line that ends with \\ goes on in the
    next one, and between lines of \"\"\" there may be many. Ctrl-C ends an answer; Ctrl-D, or Ctrl-C twice, leaves.
    Through a pipe each line is a message, and the answers alone come out.

    \b
    Examples:
      PROGRAM chat OUT
      PROGRAM chat OUT --system "You answer in one sentence." --temperature 0.6
      PROGRAM chat OUT < questions.txt > answers.txt
    """
    import dsv3c.runtime
    from dsv3c.runtime.cli import chat_commands
    from dsv3c.runtime.cli.conversation import Conversation

    speculate = decoding.drafter(options)
    how = decoding.request_settings(options)
    terminal = _prepare_streams()
    placement = (device, gpu_layers, cpu_artifact)
    with dsv3c.runtime.load(artifact, threads, context, None, *placement, speculate, numa=numa) as model:
        conversation = Conversation(model, {}, system)
        conversation.set_parameters(how)
        if load is not None:
            echo(chat_commands.run(conversation, f"/load {load}"), err=True)
        if terminal:
            echo(f"{artifact.name}, {model.context} tokens of context; /help lists the commands", err=True)
        failed = talk(conversation, messages(_from_terminal if terminal else _from_pipe), Screen(terminal))
    return FAULT if failed and not terminal else DONE


def talk(conversation: Conversation, said: Iterable[str], screen: Screen) -> int:
    """Answers all that is said; returns how much of it failed."""
    from dsv3c.runtime.cli import chat_commands

    failed = 0
    for text in said:
        try:
            if text.startswith("/") and not text.startswith("//"):
                echo(chat_commands.run(conversation, text), err=True)
                continue
            text = text.removeprefix("/") if text.startswith("//") else text
            with _ctrl_c_means(conversation.cancel):
                screen.show(conversation.ask(text))
            for note in _notes(conversation):
                echo(note, err=True)
        except Dsv3cError as error:
            failed += 1
            echo(f"error: {error}", err=True)
    return failed


def messages(read_line: Reader) -> Iterator[str]:
    """What is said, one or several lines each; empty ones are none. Ends with the lines, or where one leaves."""
    dropped = False
    while True:
        try:
            text = _message(read_line)
        except Dropped:
            if dropped:
                return
            echo("(Ctrl-C once more, or Ctrl-D, leaves)", err=True)
            dropped = True
            continue
        dropped = False
        if text is None or text.strip() in _QUIT:
            return
        if text.strip():
            yield text


def _message(read_line: Reader) -> str | None:
    line = read_line(False)
    if line is None:
        return None
    if line.lstrip().startswith(_BLOCK):
        return _block(line.lstrip().removeprefix(_BLOCK), read_line)
    return _continued(line, read_line)


def _block(first: str, read_line: Reader) -> str:
    lines, line = list[str](), cast("str | None", first)
    while line is not None:
        end = line.rstrip().endswith(_BLOCK)
        lines.append(line.rstrip().removesuffix(_BLOCK) if end else line)
        if end:
            break
        line = read_line(True)
    # The marks stand on lines of their own, or beside the text.
    return "\n".join(lines[1:] if not lines[0] else lines).removesuffix("\n")


def _continued(line: str, read_line: Reader) -> str:
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        following = read_line(True)
        if following is None:
            break
        lines.append(following)
    return "\n".join(lines)


class Dropped(Exception):
    """What was being typed is given up."""


class Screen:
    """Shows answers as they come; thoughts are dim on a terminal, and stand between their tags elsewhere."""

    def __init__(self, terminal: bool) -> None:
        styled = terminal and "NO_COLOR" not in os.environ
        self._opening, self._closing = (_DIM, _PLAIN) if styled else ("<think>\n", "\n</think>")

    def show(self, pieces: Iterable[Piece]) -> None:
        shown = thinking = False
        try:
            for text, thought in pieces:
                if thought and not thinking:
                    echo(self._opening, nl=False)
                elif thinking and not thought:
                    echo(f"{self._closing}\n", nl=False)
                shown, thinking = True, thought
                echo(text, nl=False)
        except Dsv3cError:
            if shown:
                self._end(thinking)
            raise
        self._end(thinking)

    def _end(self, thinking: bool) -> None:
        echo(self._closing if thinking else "")


def _notes(conversation: Conversation) -> Iterator[str]:
    last, model = conversation.last, conversation.model
    if last is None:
        return
    if last.finish_reason == "cancelled":
        yield "(stopped)"
    if last.finish_reason == "time":
        yield "(max_time is over)"
    if last.dropped_tokens:
        yield f"note: the window of {model.context} tokens slid, {last.dropped_tokens} tokens were dropped"
    if last.finish_reason == "length" and not last.dropped_tokens:
        full = last.prompt_tokens + len(last.token_ids) >= model.context
        told = f"the context of {model.context} tokens is full: /reset begins anew, /params overflow=slide goes on"
        yield f"note: {told}" if full else "(max_new_tokens are reached)"


@contextmanager
def _ctrl_c_means(cancel: Callable[[], None]) -> Iterator[None]:
    """An answer is cancelled, by a thread of its own: a step must not be interrupted."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=cancel).start())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _from_terminal(continued: bool) -> str | None:
    """A line that is typed. Raises Dropped for Ctrl-C."""
    try:
        return input("... " if continued else "> ")
    except EOFError:
        echo("", err=True)
        return None
    except KeyboardInterrupt:
        echo("", err=True)
        raise Dropped from None


def _from_pipe(continued: bool) -> str | None:
    if sys.stdin is None:
        return None
    line: bytes = sys.stdin.buffer.readline()
    return line.decode("utf-8", "replace").rstrip("\r\n") if line else None


def _prepare_streams() -> bool:
    """Texts are UTF-8 whatever the locale. Returns whether somebody sits at a terminal; lines can be edited there."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
    if terminal:
        with suppress(ImportError):  # not everywhere
            import readline  # noqa: F401
    return terminal
