"""The formats, a row each. Sources: the chat templates that the models are published with, and their model cards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsv3c.runtime.text.dialects.forms import NAME, Form, Marked
from dsv3c.runtime.text.dialects.json_forms import ArgumentTags, JsonObject


@dataclass(frozen=True)
class Format:
    """forms: how a call may be written; one writes, the first. All have the same opener.

    signs: what a chat template has that writes this format; one of `tokens` in the vocabulary will do where the
    template says nothing of calls. section: tags around all calls of an answer, empty for none. ends_thoughts: whether
    a model may begin calls without closing its thoughts. call_id: ids that the template shows to the model, given the
    tool and how many calls there were before it.
    """

    name: str
    forms: tuple[Form, ...]
    signs: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    section: tuple[str, str] | tuple[()] = ()
    ends_thoughts: bool = False
    call_id: Callable[[str, int], str] | None = None

    @property
    def openers(self) -> tuple[str, ...]:
        return (*self.section[:1], self.forms[0].opener)

    @property
    def tags(self) -> tuple[str, ...]:
        return (*self.section, *(tag for form in self.forms for tag in form.tags))

    def opening(self, name: str | None) -> str:
        """What an answer begins with that has to call this tool, or any."""
        return "".join(self.section[:1]) + self.forms[0].opening(name)


_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_CALL = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", *_DEEPSEEK)
_KIMI = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
_KIMI_CALL = ("<|tool_call_begin|>", "<|tool_call_end|>", *_KIMI)

# The first row whose signs are all in the template is a model's format; the last is that of any other.
FORMATS = (
    Format(
        name="deepseek-v3",  # and R1
        forms=(
            Marked(
                rf"\s*function<｜tool▁sep｜>\s*(?P<name>{NAME})\s*```(?:json)?[ \t]*\n",
                "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>",
                _DEEPSEEK_CALL,
            ),
        ),
        signs=("<｜tool▁sep｜>", "```json"),
        tokens=("<｜tool▁sep｜>",),
        section=_DEEPSEEK,
    ),
    Format(
        name="deepseek-v3.1",
        forms=(
            Marked(
                rf"\s*(?P<name>{NAME})\s*<｜tool▁sep｜>",
                "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>",
                _DEEPSEEK_CALL,
            ),
        ),
        signs=("<｜tool▁sep｜>",),
        section=_DEEPSEEK,
    ),
    Format(
        name="kimi-k2",
        forms=(
            Marked(
                rf"\s*(?:functions\.)?(?P<name>(?!\d+\s*<){NAME}?)(?::\d+)?\s*<\|tool_call_argument_begin\|>",
                "<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>",
                _KIMI_CALL,
            ),
        ),
        signs=("<|tool_call_argument_begin|>",),
        tokens=("<|tool_call_argument_begin|>",),
        section=_KIMI,
        ends_thoughts=True,
        call_id=lambda name, number: f"functions.{name}:{number}",
    ),
    Format(
        name="glm-4.5",  # to 4.7
        forms=(ArgumentTags(), JsonObject()),
        signs=("<arg_key>",),
        tokens=("<arg_key>",),
    ),
    Format(name="json", forms=(JsonObject(),)),
)
