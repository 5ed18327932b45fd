"""What a server refuses, with the HTTP status of it, and which faults of the runtime are told to a client.

A fault whose class is not listed here may name files of this machine: its client is told that the model failed, and no
more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dsv3c.runtime import errors
from dsv3c.runtime.engine.expert_stats import ExpertsUnknown, NoExperts
from dsv3c.runtime.errors import RequestFault, RuntimeFault

INVALID, TOO_LARGE, UNAUTHORIZED, FORBIDDEN, UNKNOWN, BUSY, BROKEN = (
    "invalid_request_error",
    "request_too_large",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
)


class ServerFault(RequestFault):
    """Base of what a server answers instead of what was asked for.

    status: of HTTP. kind: as OpenAI names it. field: the path in the body, such as `messages[2].content`, if one is at
    fault. retry_after: seconds after which it may be tried again.
    """

    status: ClassVar[int] = 400
    kind: ClassVar[str] = INVALID
    field: str | None = None
    retry_after: int | None = None


# ---- bodies


class JsonInvalid(ServerFault):
    message = "the body is not JSON: {reason}"
    hint = "send a JSON object in UTF-8"


class FieldInvalid(ServerFault):
    message = "{field}: {reason}"


class FieldMissing(ServerFault):
    message = "{field} is missing: {what}"


class NotJson(ServerFault):
    status = 415
    message = "the body has the content type {found}"
    hint = "send JSON, with the header Content-Type: application/json"


class BodyTooLarge(ServerFault):
    status, kind = 413, TOO_LARGE
    message = "the body is larger than {limit} bytes"
    hint = "send less at once"


class BodyTooSlow(ServerFault):
    status = 408
    message = "the body did not come within {seconds:g} seconds"
    hint = "send it at once"


# ---- who may


class KeyMissing(ServerFault):
    status, kind = 401, UNAUTHORIZED
    message = "this server wants an API key"
    hint = "send the header Authorization: Bearer KEY, or x-api-key: KEY"


class KeyWrong(ServerFault):
    status, kind = 401, UNAUTHORIZED
    message = "the API key is not one of this server's"


class HostRefused(ServerFault):
    status, kind = 403, FORBIDDEN
    message = "this server is reached as localhost, not by the name in the Host header"
    hint = "use http://127.0.0.1 and its port; to be reached from other machines it is started with --host"


class OriginRefused(ServerFault):
    status, kind = 403, FORBIDDEN
    message = "pages of other origins may not use this server"
    hint = "it is started with --cors ORIGIN to let one"


# ---- what there is


class RouteUnknown(ServerFault):
    status, kind = 404, UNKNOWN
    message = "there is nothing here"


class MethodRefused(ServerFault):
    status = 405
    message = "this method is not for this address"


class ModelUnknown(ServerFault):
    status, kind = 404, UNKNOWN
    field = "model"
    message = "model: there is none named {name}; served are {known}"


class ResponseUnknown(ServerFault):
    status, kind = 404, UNKNOWN
    message = "there is no such response, or it is not remembered any more"


class FeatureMissing(ServerFault):
    message = "{field}: {what} is not to be had: {reason}"


# ---- how busy it is


class QueueFull(ServerFault):
    status, kind = 429, BUSY
    message = "{working} requests are at work and {waiting} wait, which is all this server takes"
    hint = "try again in {retry_after} s"


class Ending(ServerFault):
    status, kind = 503, BROKEN
    message = "the server is about to end and takes no new requests"


class ModelLoading(ServerFault):
    status, kind = 503, BROKEN
    message = "Loading model"  # as llama-server says it


class MemoryShort(ServerFault):
    status, kind, retry_after = 503, BROKEN, 5
    message = "there is no memory for model {name} now"
    hint = "try again when others are done"


class ModelFailed(ServerFault):
    status, kind = 500, BROKEN
    message = "the model failed; the server's log has the reason"


class Broken(ServerFault):
    status, kind = 500, BROKEN
    message = "the server failed; its log has the reason"


# ---- faults of the runtime

_TOLD: tuple[type[RuntimeFault], ...] = (
    errors.EmptyPrompt,
    errors.TokenOutOfRange,
    errors.TokensInvalid,
    errors.ContextOverflow,
    errors.ParameterInvalid,
    errors.UnknownParameter,
    errors.NoTokenAllowed,
    errors.GrammarInvalid,
    errors.GrammarFailed,
    errors.TokenizerUnsuitable,
    errors.TokenizerMissing,
    errors.TextInvalid,
    errors.TemplateMissing,
    errors.TemplateFailed,
    errors.TemplateTooCostly,
    errors.MessagesInvalid,
    NoExperts,
    ExpertsUnknown,
)
_OF_REQUESTS = (
    *_TOLD,
    ServerFault,
    errors.GuidanceMissing,
    errors.OutOfPages,
    errors.LogitsNotFinite,
    errors.TemplateProcessMissing,
)
_GUIDES = ("json_schema", "grammar", "regex")
_GUIDANCE = "answers that follow a schema or a grammar need the package llguidance, which the server is without"


@dataclass(frozen=True)
class Told:
    """What a client learns of a fault. field and code as OpenAI's `param` and `code`."""

    status: int
    kind: str
    message: str
    field: str | None = None
    code: str | None = None
    retry_after: int | None = None


def told(fault: BaseException, fields: Mapping[str, str] = {}) -> Told:
    """fields: what the API calls parameters of the engine."""
    if isinstance(fault, ServerFault):
        text = str(fault).replace("\n  hint: ", "; ")
        code = _CODES.get(type(fault))
        return Told(fault.status, fault.kind, text, fault.field, code, fault.retry_after)
    if isinstance(fault, errors.GuidanceMissing):
        return Told(400, INVALID, _GUIDANCE, _guide_of(fields))
    if isinstance(fault, errors.OutOfPages):
        return Told(503, BROKEN, "the cache has no room for this request now", retry_after=1)
    if not isinstance(fault, _TOLD):
        return told(ModelFailed() if isinstance(fault, RuntimeFault) else Broken())
    text = str(fault).partition("\n  hint: ")[0]
    if isinstance(fault, errors.ContextOverflow):
        return Told(400, INVALID, text, fields.get("prompt", "prompt"), "context_length_exceeded")
    if isinstance(fault, errors.GrammarFailed | errors.NoTokenAllowed):  # comes of several parameters
        return Told(400, INVALID, text, _guide_of(fields))
    name = getattr(fault, "name", None)
    field = fields.get(name, name) if isinstance(name, str) else fields.get("prompt")
    if isinstance(name, str) and field is not None:
        text = text.replace(name, field, 1)
    return Told(400, INVALID, text, field)


def _guide_of(fields: Mapping[str, str]) -> str | None:
    """The field that says what the answer has to follow."""
    return next((fields[name] for name in _GUIDES if name in fields), None)


_CODES: Mapping[type[ServerFault], str] = {
    ModelUnknown: "model_not_found",
    KeyMissing: "invalid_api_key",
    KeyWrong: "invalid_api_key",
    QueueFull: "rate_limit_exceeded",
}


def breaks_model(fault: BaseException) -> bool:
    """Whether the model has to be loaded again after this, which came out of its steps: a fault of its device, or one
    of the engine, whose state is not known then."""
    return not isinstance(fault, _OF_REQUESTS)
