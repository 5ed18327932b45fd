"""What a client learns of a fault: whose it is, which field, and nothing of this machine."""

from __future__ import annotations

import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.server import errors as refused
from dsv3c.runtime.server.errors import Told, breaks_model, told


@pytest.mark.parametrize(
    ("fault", "status", "field", "code"),
    [
        (refused.FieldInvalid(field="a.b", reason="it is wrong"), 400, "a.b", None),
        (refused.ModelUnknown(name="'x'", known="y"), 404, "model", "model_not_found"),
        (refused.QueueFull(working=1, waiting=2, retry_after=7), 429, None, "rate_limit_exceeded"),
        (refused.BodyTooLarge(limit=1), 413, None, None),
        (errors.ContextOverflow(tokens=9, context=4, largest=8), 400, "messages", "context_length_exceeded"),
        (errors.ParameterInvalid(name="max_new_tokens", value=0, reason="x"), 400, "max_tokens", None),
        (errors.GrammarInvalid(name="json_schema", reason="x"), 400, "response_format", None),
        (errors.GrammarFailed(tokens=0, reason="response_format"), 400, "response_format", None),
        (errors.TemplateTooCostly(reason="it runs"), 400, "messages", None),
        (errors.OutOfPages(free=0, page_size=1, wanted=2), 503, None, None),
    ],
)
def test_faults_of_a_request_are_told(fault: Exception, status: int, field: str | None, code: str | None) -> None:
    fields = {"max_new_tokens": "max_tokens", "json_schema": "response_format", "prompt": "messages"}
    found = told(fault, fields)
    assert (found.status, found.field, found.code) == (status, field, code)
    assert "\n" not in found.message
    if field and status == 400 and code is None and "template" not in found.message:
        assert field in found.message


@pytest.mark.parametrize(
    "fault",
    [
        errors.WeightsLost(path="/secret/weights"),
        errors.DeviceLost(device="GPU", what="/secret"),
        errors.LibraryInvalid(path="/secret", reason="x"),
        errors.TemplateProcessMissing(reason="/secret/python"),
        errors.GuidanceMissing(reason="/secret/llguidance.so"),
        ValueError("/secret and the body"),
    ],
)
def test_what_may_name_files_is_told_without_them(fault: Exception) -> None:
    found = told(fault)
    assert "secret" not in found.message
    assert found.status == (400 if isinstance(fault, errors.GuidanceMissing) else 500)


def test_a_retry_is_told_where_it_helps() -> None:
    assert told(refused.QueueFull(working=1, waiting=2, retry_after=7)).retry_after == 7
    assert isinstance(told(refused.Ending()), Told) and told(refused.Ending()).status == 503


def test_the_model_is_loaded_again_after_faults_that_are_not_a_request_s() -> None:
    assert breaks_model(errors.DeviceLost(device="GPU", what="a step")) and breaks_model(ValueError("a bug"))
    assert not breaks_model(errors.GrammarFailed(tokens=1, reason="x"))
    assert not breaks_model(refused.QueueFull(working=1, waiting=1, retry_after=1))
