"""Entries that end with drawn tokens: what a plan must say of them, and what a session asks of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.plan import Output, Plan
from dsv3c.runtime.artifact.plan_reader import parse_plan
from dsv3c.runtime.artifact.weights import Tensor
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.sampling import FORMS, Draw, Sampler
from dsv3c.runtime.engine.session import Request, Session
from tests.runtime import toy

TENSORS = {"scale": Tensor("float32", (1,), 128, 4)}
TOKEN, SAMPLING = 14, 15


def content() -> Any:
    """The toy's plan with a token for each row and the parameters of drawing."""
    plan = toy.plan_content()
    start = plan["arena_bytes"]
    plan["buffers"] += [
        {"name": "token", "kind": "arena", "dtype": "int32", "size": 4, "offset": start},
        {"name": "sampling", "kind": "input", "dtype": "int32", "size": 32},
    ]
    plan["arena_bytes"] += 64
    names = [(entry, form) for entry in ("decode", "prefill") for form in FORMS]
    calls = [["toy_draw", [5, 8, SAMPLING, TOKEN]]]
    plan["sampling"] = {f"{e}.{form}": {"entry": e, "calls": calls, "token": TOKEN} for e, form in names}
    return plan


def parse(plan: Any) -> Plan:
    return parse_plan(plan, TENSORS, toy.VOCAB)


class DrawingDevice(toy.ToyDevice):
    """Draws the likeliest id plus the first of the row's words."""

    def run(self, entry: str) -> None:
        super().run(entry)
        rows = int(self.inputs["control"][1])
        best = self.outputs["logits"].reshape(-1, toy.VOCAB)[:rows].argmax(-1)
        self.outputs["token"] = best.astype(np.int32) + self.inputs["sampling"].reshape(-1, 8)[:rows, 0]


def session(plan: Any, device: type[toy.ToyDevice] = DrawingDevice) -> Session:
    parsed = parse(plan)
    return Session(parsed, device(parsed, 64), toy.VOCAB)


def draw(form: str, word: int) -> Draw:
    return Draw(form, np.array([word, *[0] * 7], np.int32))


def test_an_entry_that_draws_has_the_calls_of_its_entry_first() -> None:
    entry = parse(content()).entries["prefill.greedy"]
    assert [name for name, _ in entry.calls] == ["toy_step", "toy_draw"]
    assert dict(entry.outputs) == {"token": Output(TOKEN, "R")}
    assert entry.min_tokens == 6


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["sampling", "decode.greedy", "entry"], "mtp2"),
        (["sampling", "decode.greedy", "entry"], 3),
        (["sampling", "decode.greedy", "token"], 8),
        (["sampling", "decode.greedy", "token"], 99),
        (["sampling", "decode.greedy", "calls"], [["toy_draw", [99]]]),
        (["sampling", "decode.greedy", "calls"], None),
        (["sampling"], []),
        (["sampling", "mtp"], {"entry": "decode", "calls": [], "token": TOKEN}),
        (["buffers", TOKEN, "size"], 3),
        (["buffers", TOKEN, "dtype"], "float32"),
        (["buffers", SAMPLING, "size"], 31),
        (["buffers", SAMPLING, "name"], "sampled"),
    ],
    ids=str,
)
def test_a_wrong_entry_is_refused(keys: list[Any], value: Any) -> None:
    plan = content()
    at = plan
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    with pytest.raises(errors.PlanInvalid):
        parse(plan)


def test_each_request_gets_its_own_draw_in_one_step() -> None:
    drawing = session(content())
    prompts = [np.array([3, 1], np.int32), np.array([7], np.int32)]
    plain = session(toy.plan_content(), toy.ToyDevice)
    logits = plain.run([Request(plain.new_sequence(), prompt, "last") for prompt in prompts])
    expected = [int(row.argmax()) + word for row, word in zip(logits, (10, 20), strict=True)]
    draws = draw("greedy", 10), draw("ordered", 20)
    requests = [
        Request(drawing.new_sequence(), prompt, "last", (each,)) for prompt, each in zip(prompts, draws, strict=True)
    ]
    assert drawing.draw(requests) == [[token] for token in expected]
    assert drawing.device.steps == [("decode.ordered", 3, 2)]  # type: ignore[attr-defined]


def test_a_long_prompt_draws_in_its_last_step() -> None:
    drawing = session(content())
    drawing.draw([Request(drawing.new_sequence(), np.arange(11, dtype=np.int32), "last", (draw("filtered", 1),))])
    assert drawing.device.steps == [("prefill.filtered", 8, 0), ("decode.filtered", 3, 1)]  # type: ignore[attr-defined]


def test_requests_with_and_without_draws_do_not_mix() -> None:
    drawing = session(content())
    requests = [
        Request(drawing.new_sequence(), np.array([1], np.int32), "last", each) for each in ((), (draw("greedy", 0),))
    ]
    with pytest.raises(errors.StepInvalid, match="draw"):
        drawing.draw(requests)
    assert all(request.sequence.length == 0 for request in requests)


def test_a_plan_without_such_entries_cannot_draw() -> None:
    assert session(content()).can_draw
    assert not session(toy.plan_content()).can_draw


def test_a_sampler_hands_on_what_a_device_can_do() -> None:
    assert Sampler(SamplingParams(repetition_penalty=1.1, temperature=1), 5).draw() is None
    for params, form in (
        ({}, "greedy"),
        ({"min_p": 0.1}, "ordered"),
        ({"top_k": 3}, "filtered"),
        ({"top_p": 0.5}, "filtered"),
    ):
        found = Sampler(SamplingParams(temperature=float(bool(params)), **params), 5).draw()  # type: ignore[arg-type]
        assert found is not None and found.form == form


def test_a_device_and_the_host_take_the_same_uniform_numbers() -> None:
    logits = np.zeros(1000, np.float32)
    host, device = (Sampler(SamplingParams(temperature=1, seed=3), 1000) for _ in range(2))
    for _ in range(5):
        found = device.draw()
        assert found is not None
        expected = int(found.words[4:5].view(np.uint32)[0]) * 1000 >> 32
        assert host.sample(logits, History()) == device.token(expected) == expected


@pytest.mark.parametrize(("drawn", "said"), [(-1, "nan"), (-2, "inf"), (-3, "-inf")])
def test_a_device_that_finds_no_finite_logit_is_heard(drawn: int, said: str) -> None:
    with pytest.raises(errors.LogitsNotFinite, match=said):
        Sampler(SamplingParams(), 5).token(drawn)
