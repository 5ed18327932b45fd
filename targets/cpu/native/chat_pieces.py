"""A chat template as the texts it puts around those of a conversation, where that is all it does.

A template is a program. What it does is found by rendering it: its pieces with texts that are recognised, and then that
they are all there is to it with texts that others change: trimmed, escaped, cut at a mark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsv3c.runtime.errors import RuntimeFault, TemplateMissing
from dsv3c.runtime.text.tokenizer import Tokenizer

Messages = list[dict[str, str]]
Render = Callable[[Messages], str]

_MARKS = ("Qz7System7zQ", "Qz7First7zQ", "Qz7Answer7zQ", "Qz7Second7zQ")
_AWKWARD = (
    *("", " ", " blanks  ", "\n\nlines\n", "\ttab\r\n", "0", "None", "\\n", "\u00a0größer\u3000你好 🙂"),
    *("<b>&amp; \"two\" 'one'</b>", "{{ braces }} {% raw %}", "a</think>b", "<think>a</think>\n\nb", "<think>"),
    *("[INST] a [/INST]", "<<SYS>>a<</SYS>>", "<|im_start|>a<|im_end|>", "<tool_call>{}</tool_call>", "/think"),
)
_LONGEST = 4  # questions of a conversation that is tried
_ROLES = ("bos_token", "eos_token", "pad_token")

_NOT_PLAIN = "the chat template does more than join texts"
_ONE_TURN = "the chat template does more than join texts where a conversation has answers"


@dataclass(frozen=True)
class ChatPieces:
    """As plan_chat of plan.h has them; head None: there are none."""

    lacks: str = ""
    head: str | None = None
    system_head: str | None = None
    system_tail: str | None = None
    tail: str | None = None
    user_tail: str | None = None
    assistant_tail: str | None = None

    def join(self, messages: Messages) -> str:
        """What chat.c makes of a conversation."""
        system = messages[0]["role"] == "system"
        turns = [message["content"] for message in (messages[1:] if system else messages)]
        begin = f"{self.system_head}{messages[0]['content']}{self.system_tail}" if system else self.head
        behind = [self.assistant_tail if i % 2 else self.user_tail for i in range(len(turns) - 1)]
        return f"{begin}{''.join(f'{a}{b}' for a, b in zip(turns, [*behind, self.tail], strict=True))}"


def chat_pieces(folder: Path, config: Mapping[str, Any]) -> ChatPieces:
    """Of the chat template of an artifact's or a checkpoint's folder; `config` is its tokenizer_config.json."""
    path, template = folder / "tokenizer.json", folder / "chat_template.jinja"
    if not path.exists():
        return ChatPieces("this model was compiled without a tokenizer, and so without a chat template")
    source = template.read_bytes() if template.exists() else None
    try:
        tokenizer = Tokenizer(path, config, source)
        tokenizer.render_chat(_conversation(_MARKS[1:2]))
    except TemplateMissing:
        return ChatPieces("the checkpoint has no chat template")
    except RuntimeFault as error:
        return ChatPieces(f"the chat template cannot be used: {str(error).splitlines()[0]}")
    if b"strftime_now" in (source or str(config.get("chat_template")).encode("utf-8", "replace")):
        return ChatPieces("the chat template writes the date")
    awkward = [*_AWKWARD, *(token for role in _ROLES if (token := tokenizer.special_token(role)) is not None)]
    return _pieces(tokenizer.render_chat, awkward)


def _pieces(render: Render, awkward: Sequence[str]) -> ChatPieces:
    """As far as joining them gives what the template does."""
    found = _split(render, _conversation(_MARKS[1:2]))
    if found is None or not _same(render, one := ChatPieces("", head=found[0], tail=found[1]), awkward, 1, False):
        return ChatPieces(_NOT_PLAIN)
    found = _split(render, _conversation(_MARKS[1:2], _MARKS[0]))
    with_system = None if found is None else replace(one, system_head=found[0], system_tail=found[1])
    systems = with_system is not None and _same(render, with_system, [text for text in awkward if text], 1, True)
    plain = with_system if with_system is not None and systems else one
    found = _split(render, _conversation(_MARKS[1:]))
    turns = None if found is None else replace(plain, user_tail=found[1], assistant_tail=found[2])
    if turns is not None and all(_same(render, turns, awkward, _LONGEST, system) for system in {False, systems}):
        return turns
    return replace(plain, lacks=_ONE_TURN)


def _conversation(turns: Sequence[str], system: str | None = None) -> Messages:
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def _split(render: Render, messages: Messages) -> list[str] | None:
    """What stands before, between and behind the messages' texts; None where not each is there once, in order."""
    text, pieces = _rendered(render, messages) or "", []
    for message in messages:
        before, mark, text = text.partition(message["content"])
        pieces.append(before)
        if not mark:
            return None
    pieces.append(text)
    marked = any(mark in piece for mark in _MARKS for piece in pieces)
    return None if marked or "\0" in "".join(pieces) else pieces


def _same(render: Render, pieces: ChatPieces, awkward: Sequence[str], questions: int, system: bool) -> bool:
    tried = _tried(awkward, questions, system)
    return all(_rendered(render, messages) == pieces.join(messages) for messages in tried)


def _tried(awkward: Sequence[str], questions: int, system: bool) -> Iterator[Messages]:
    """Conversations of 1 to so many questions; each text stands at each place once."""
    for i, text in enumerate(awkward):
        turns = [text, *(awkward[(i + j) % len(awkward)] for j in range(1, 2 * questions - 1))]
        for count in range(1, 2 * questions, 2):
            yield _conversation(turns[:count], awkward[(i + 5) % len(awkward)] if system else None)


def _rendered(render: Render, messages: Messages) -> str | None:
    try:
        return render(messages)
    except RuntimeFault:  # a template may refuse roles
        return None
