"""Many prompts side by side: answers as JSON lines, in the order of the prompts."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Generator
from collections.abc import Sequence as Many
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dsv3c.runtime.cli import answers
from dsv3c.runtime.cli.output import echo
from dsv3c.runtime.cli.prompts import Asked
from dsv3c.runtime.errors import RuntimeFault
from dsv3c.runtime.progress import Progress

if TYPE_CHECKING:
    from dsv3c.runtime.artifact.plan import Plan
    from dsv3c.runtime.engine.engine import Ticket
    from dsv3c.runtime.engine.generation import Generation
    from dsv3c.runtime.model import Model

How = Callable[[Asked], dict[str, Any]]
_AHEAD = 4  # as many requests as a step holds sequences are handed in, and three times as many to follow


@dataclass
class Totals:
    prompts: int = 0
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, generations: Many[Generation]) -> None:
        for each in generations:
            self.tokens += len(each.token_ids)
            self.reasons[each.finish_reason] = self.reasons.get(each.finish_reason, 0) + 1


@dataclass
class _Handed:
    """A request that was handed in, or why it could not be."""

    asked: Asked
    how: dict[str, Any]
    ticket: Ticket | None = None
    fault: RuntimeFault | None = None

    @property
    def done(self) -> bool:
        return self.ticket is None or self.ticket.done


def sequences_for(plan: Plan, context: int | None, asked: Many[tuple[int, int, int]]) -> int:
    """How many full sequences a cache needs room for, so that of these requests as many as a step holds are answered
    side by side. asked: (tokens of the prompt, new tokens, results) of each, at most. With less room they wait."""
    whole = context or plan.context
    most = sorted((prompt + new * results for prompt, new, results in asked), reverse=True)
    tokens = sum(min(size, whole) for size in most[: plan.bounds.S])
    return max(1, min(plan.bounds.S, -(-tokens // whole)))


def answer_all(model: Model, asked: Many[Asked], how: How, progress: Progress) -> Totals:
    """Prints a line for each prompt, as soon as it and all before it are answered."""
    totals, began = Totals(), time.perf_counter()
    progress.stage("answering", len(asked))
    with closing(_handled(model, asked, how)) as handled:
        for index, handed in enumerate(handled):
            line: dict[str, Any] = {"id": handed.asked.label if handed.asked.labelled else index}
            totals.prompts += 1
            try:
                if handed.fault is not None:
                    raise handed.fault
                assert handed.ticket is not None
                generations = handed.ticket.results()
                totals.add(generations)
                line |= answers.request_report(model, generations, handed.how)
            except RuntimeFault as fault:
                totals.failed += 1
                message, _, hint = str(fault).partition("\n  hint: ")
                line["error"] = {"code": fault.code, "message": message, "hint": hint}
            print_line(line)
            progress.advance()
    totals.seconds = time.perf_counter() - began
    return totals


def print_line(value: Any) -> None:
    """One line of JSON, in UTF-8 whatever the locale."""
    echo(json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n", nl=False)


def _handled(model: Model, asked: Many[Asked], how: How) -> Generator[_Handed, None, None]:
    """All requests in their order, each when it is done. Whoever is left when nobody asks for more is cancelled."""
    waiting, handed = deque(asked), deque[_Handed]()
    ahead = _AHEAD * model.session.plan.bounds.S

    def hand_in() -> None:
        while waiting and sum(not each.done for each in handed) < ahead:
            handed.append(_hand_in(model, waiting.popleft(), how))

    try:
        hand_in()
        while handed:
            head = handed[0]
            try:
                for _ in head.ticket or ():
                    hand_in()  # others may be done before this one
            except RuntimeFault as fault:
                head.fault = fault
            yield handed.popleft()
            hand_in()
    finally:
        for each in handed:
            if each.ticket is not None:
                each.ticket.cancel()


def _hand_in(model: Model, asked: Asked, how: How) -> _Handed:
    given = how(asked)
    try:
        return _Handed(asked, given, model.submit(asked.prompt, asked.add_bos, **given))
    except RuntimeFault as fault:
        return _Handed(asked, given, fault=fault)
