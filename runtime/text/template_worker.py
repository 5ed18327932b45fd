"""The program of the process that renders chat templates (`template_process` starts it). It imports jinja2 and the
standard library alone.

It answers requests until its input ends; both are frames, a length in four bytes and that many bytes. A request is
JSON: `source` of the template, `messages`, `variables`, `seconds` of CPU time that it may take. An answer is one byte
for its kind and a text in UTF-8. Whatever a template does, the system ends this process at its limits: nobody has to
know which filters are dangerous.
"""

from __future__ import annotations

import datetime
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, BinaryIO, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEXT, FAILED, COSTLY = b"t", b"f", b"c"
CHARACTERS = 16 << 20
_REASON_LENGTH = 500


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what an assistant said, for training. It renders as what it holds;
    names set inside stay inside, as with transformers."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


def environment() -> jinja2.Environment:
    """What transformers gives the templates that it renders."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals.pop("lipsum", None)
    made.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return made


@lru_cache(maxsize=1)
def compiled(source: str) -> jinja2.Template:
    return environment().from_string(source)


def answer(request: Any) -> tuple[bytes, str]:
    """Kind and text of the answer. Raises MemoryError."""
    try:
        template = compiled(request["source"])
        text = template.render(messages=request["messages"], **request["variables"])
    except MemoryError:
        raise
    except Exception as error:  # any exception of template code, including what it raises on purpose
        return FAILED, str(error)[:_REASON_LENGTH] or type(error).__name__
    if len(text) > CHARACTERS:
        return COSTLY, f"it makes a text of more than {CHARACTERS} characters"
    return TEXT, text


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    while len(head := requests.read(4)) == 4:
        request = json.loads(requests.read(int.from_bytes(head, "big")))
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        kind, text = answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        write(answers, kind, text)


def write(answers: BinaryIO, kind: bytes, text: str) -> None:
    data = kind + text.encode("utf-8", "surrogatepass")
    answers.write(len(data).to_bytes(4, "big") + data)
    answers.flush()


def limit_memory(limit: int) -> None:
    """Let this process take `limit` bytes more than it has. Where the system does not tell what it has, as on macOS, it
    has no such limit either: there the other process watches."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            total = int(file.read().split()[0]) * resource.getpagesize() + limit
    except OSError:
        return
    now, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (total if now == resource.RLIM_INFINITY else min(total, now), most))


def main(limit: int) -> None:
    """Serve on stdin and stdout, with `limit` bytes of memory for templates."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not get between the frames
    limit_memory(limit)
    write(answers, TEXT, "")
    try:
        serve(sys.stdin.buffer, answers)
    except MemoryError:
        write(answers, COSTLY, f"it takes more than {limit >> 20} MB of memory")


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # As transformers has it: no HTML escapes. `options` such as separators and sort_keys go to json.dumps.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


if __name__ == "__main__":
    main(int(sys.argv[2]))
