"""What begins with a slash in a chat: commands over the conversation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3c.runtime.cli import answers, sessions
from dsv3c.runtime.cli.output import columns
from dsv3c.runtime.errors import RequestFault

if TYPE_CHECKING:
    from dsv3c.runtime.cli.conversation import Conversation

HELP = """\
/reset                forget what was said
/system [TEXT]        the system's message, none without TEXT
/save FILE            save the conversation with its pages; as messages alone where FILE ends with .json
/load FILE            go on with a saved one
/params [NAME=VALUE]  parameters of the answers: show them, or set some; NAME= takes one back
/stats                tokens, speed, what was cached
/help                 this
/quit                 leave, as Ctrl-D does; Ctrl-C ends an answer
//TEXT                a text that begins with a slash
A line that ends with \\ goes on in the next one; between lines of \"\"\" there are many."""
_JSON_LIMIT = 64 << 20


class CommandInvalid(RequestFault):
    message = "{reason}"
    hint = "/help lists the commands"


class FileRefused(RequestFault):
    message = "{path}: {reason}"
    hint = "give the path of a JSON file with a list of messages, or of a saved conversation"


def run(conversation: Conversation, line: str) -> str:
    """What there is to say of a command. Raises Dsv3cError."""
    name, _, rest = line.partition(" ")
    command = _COMMANDS.get(name)
    if command is None:
        raise CommandInvalid(reason=f"there is no command {name}")
    return command(conversation, rest.strip())


def _help(conversation: Conversation, rest: str) -> str:
    return HELP


def _reset(conversation: Conversation, rest: str) -> str:
    conversation.reset()
    return "what was said is forgotten"


def _system(conversation: Conversation, rest: str) -> str:
    conversation.system = rest or None
    return "the system's message is set" if rest else "there is no system's message"


def _save(conversation: Conversation, rest: str) -> str:
    path = _path(rest)
    messages = conversation.all_messages
    if path.suffix == ".json":
        try:
            path.write_text(json.dumps(messages, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise FileRefused(path=path, reason=error.strerror) from error
    else:
        sessions.save_chat(conversation.model, path, messages, conversation.tokens)
    return f"saved {len(messages)} messages as {path}"


def _load(conversation: Conversation, rest: str) -> str:
    path = _path(rest)
    messages = _read_json(path) if path.suffix == ".json" else sessions.load_chat(conversation.model, path)
    conversation.take_up(messages)
    return f"loaded {len(messages)} messages"


def _params(conversation: Conversation, rest: str) -> str:
    changes: dict[str, Any] = {}
    try:
        parts = shlex.split(rest)
    except ValueError as error:
        raise CommandInvalid(reason=f"{rest} is not NAME=VALUE: {error}") from error
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            raise CommandInvalid(reason=f"{part} is not NAME=VALUE")
        changes[name.replace("-", "_")] = _value(value)
    conversation.set_parameters(changes)
    return "\n".join(columns(_parameters(conversation).items()))


def _stats(conversation: Conversation, rest: str) -> str:
    totals, last, model = conversation.totals, conversation.last, conversation.model
    rows = [
        (
            "conversation",
            f"{len(conversation.messages)} messages, {len(conversation.tokens)} tokens of {model.context}",
        ),
        ("answers", f"{totals.answers}, {totals.tokens} tokens in {totals.seconds:.1f} s"),
    ]
    if last is not None:
        rows += [("last answer", answers.summary(model, [last], None))]
        rows += [("cached tokens", f"{last.cached_tokens} of {last.prompt_tokens} of its prompt")]
    rows += [("", note) for note in answers.speculation_notes(model)]
    return "\n".join(columns(rows))


_COMMANDS: Mapping[str, Callable[[Conversation, str], str]] = {
    "/help": _help,
    "/reset": _reset,
    "/system": _system,
    "/save": _save,
    "/load": _load,
    "/params": _params,
    "/stats": _stats,
}


def _path(text: str) -> Path:
    if not text:
        raise CommandInvalid(reason="the name of a file is missing")
    return Path(text).expanduser()


def _read_json(path: Path) -> sessions.Messages:
    from dsv3c.runtime.artifact.jsonfile import read_json
    from dsv3c.runtime.errors import ArtifactFault

    try:
        found = read_json(path, _JSON_LIMIT)
    except ArtifactFault as error:
        raise FileRefused(path=path, reason=str(error).partition("\n")[0]) from error
    if not sessions.are_messages(found):
        raise FileRefused(path=path, reason="it is no list of messages, each with a role and a content")
    return list(found)


def _value(text: str) -> Any:
    """A parameter's value: JSON where it reads so, else the text; nothing takes the parameter back."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def _parameters(conversation: Conversation) -> dict[str, str]:
    """Those that are set here or by the model."""
    from dsv3c.runtime.engine.params import SamplingParams

    how = {name: value for name, value in conversation.how.items() if name != "bad_words"}
    effective, off = vars(conversation.model.parameters(how)), vars(SamplingParams())
    shown = {name: value for name, value in effective.items() if value != off[name] and name != "sampled_temperature"}
    return {name: str(value) for name, value in {**shown, **conversation.how}.items()} or {"": "none is set"}
