"""Generation that draws on the device writes the same tokens as with logits that the host reads."""

import pytest

from dsv3c import runtime

PROMPT = list(range(3, 40))


@pytest.fixture(scope="module")
def model(artifacts, vulkan):
    with runtime.load(artifacts("float32"), max_batch=2) as found:
        yield found


@pytest.fixture
def steps(model, monkeypatch):
    """The entries that the device ran."""
    ran, run = [], model.session.device.run
    monkeypatch.setattr(model.session.device, "run", lambda entry: (ran.append(entry), run(entry)))
    return ran


@pytest.mark.parametrize(
    ("params", "form"),
    [
        ({"temperature": 0}, "greedy"),
        ({"temperature": 1.2, "top_k": 0, "top_p": 1.0, "min_p": 0.02}, "ordered"),
        ({"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01}, "filtered"),
        ({"temperature": 1.5, "top_p": 0.98}, "filtered"),
    ],
    ids=str,
)
def test_the_same_tokens_as_on_the_host(model, steps, params, form, monkeypatch):
    wanted = {"max_new_tokens": 24, "ignore_eos": True, "seed": 11, **params}
    found = model.generate(PROMPT, **wanted).token_ids
    assert {entry.split(".")[1] for entry in steps} == {form}
    monkeypatch.setattr(model.session, "can_draw", False)
    steps.clear()
    assert model.generate(PROMPT, **wanted).token_ids == found
    assert {entry.split(".")[0] for entry in steps} == set(steps)


def test_a_repetition_penalty_is_for_the_host(model, steps):
    model.generate(PROMPT, max_new_tokens=3, repetition_penalty=1.3, temperature=0.5)
    assert not any("." in entry for entry in steps)
