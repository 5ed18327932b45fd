"""The C interface of an artifact's native library, called from Python."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STATUS = (
    *("OK", "BAD_ARGUMENT", "FILE_MISSING", "FILE_DAMAGED", "ISA_UNKNOWN", "ISA_UNSUPPORTED", "OUT_OF_MEMORY"),
    *("OUT_OF_PAGES", "CONTEXT_EXCEEDED", "BAD_TOKEN", "BAD_TEXT", "NO_TOKENIZER", "NOT_FINITE", "NO_TOKEN_ALLOWED"),
    *("NO_CHAT_TEMPLATE", "KERNEL_FAILED"),
)
WANT = {"none": 0, "last": 1, "all": 2}
SPECULATION = {"off": 0, "ngram": 1, "mtp": 2}
FINISH = (None, "stop", "length", "time")


class Failure(Exception):
    """status: the name of the code, without DSV3C_."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Options(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int32) for name in ("threads", "context", "max_batch", "numa"))


class Info(ctypes.Structure):
    _fields_ = (
        ("level", ctypes.c_char_p),
        *((name, ctypes.c_int32) for name in ("threads", "vocab_size", "context")),
        *((name, ctypes.c_int32) for name in ("has_tokenizer", "has_chat_template", "has_mtp")),
        ("end_tokens", ctypes.POINTER(ctypes.c_int32)),
        ("end_token_count", ctypes.c_size_t),
    )


class Request(ctypes.Structure):
    _fields_ = (
        ("sequence", ctypes.c_void_p),
        ("tokens", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("want", ctypes.c_int),
        ("logits", ctypes.c_void_p),
    )


class Ids(ctypes.Structure):
    _fields_ = (("ids", ctypes.POINTER(ctypes.c_int32)), ("count", ctypes.c_size_t))

    @classmethod
    def of(cls, ids: Sequence[int]) -> Ids:
        return cls((ctypes.c_int32 * len(ids))(*ids), len(ids))


class Bias(ctypes.Structure):
    _fields_ = (("token", ctypes.c_int32), ("bias", ctypes.c_double))


class String(ctypes.Structure):
    _fields_ = (("text", ctypes.c_char_p), ("size", ctypes.c_size_t))

    @classmethod
    def of(cls, text: str | None) -> String:
        return cls(None, 0) if text is None else cls(text.encode(), len(text.encode()))


class Sampling(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_double) for name in ("repetition_penalty", "frequency_penalty", "presence_penalty")),
        ("logit_bias", ctypes.POINTER(Bias)),
        ("logit_bias_count", ctypes.c_size_t),
        ("no_repeat_ngram_size", ctypes.c_int32),
        ("bad_words_ids", ctypes.POINTER(Ids)),
        ("bad_words_count", ctypes.c_size_t),
        *((name, ctypes.c_int32) for name in ("min_length", "min_new_tokens")),
        ("suppress_tokens", Ids),
        ("temperature", ctypes.c_double),
        ("top_k", ctypes.c_int32),
        *((name, ctypes.c_double) for name in ("top_p", "min_p", "typical_p")),
        ("eos_token_id", Ids),
        ("ignore_eos", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
    )

    def take(self, params: dict[str, Any]) -> dict[str, Any]:
        """Set the fields that are of it, given as SamplingParams has them; returns the others."""
        own = {name for name, _ in Sampling._fields_}
        for name in own & params.keys():
            setattr(self, name, getattr(self, f"_{name}", lambda value: value)(params[name]))
        return {name: value for name, value in params.items() if name not in own}

    _suppress_tokens = _eos_token_id = staticmethod(Ids.of)

    def _logit_bias(self, value: dict[int, float]) -> Any:
        self.logit_bias_count = len(value)
        return (Bias * len(value))(*(Bias(*pair) for pair in value.items()))

    def _bad_words_ids(self, value: Sequence[Sequence[int]]) -> Any:
        self.bad_words_count = len(value)
        return (Ids * len(value))(*map(Ids.of, value))


class Parameters(ctypes.Structure):
    _fields_ = (
        ("sampling", Sampling),
        *((name, ctypes.c_int32) for name in ("max_new_tokens", "max_length")),
        ("stop", ctypes.POINTER(String)),
        ("stop_count", ctypes.c_size_t),
        ("max_time", ctypes.c_double),
        ("speculation", ctypes.c_int),
    )


class Event(ctypes.Structure):
    _fields_ = (
        ("token", ctypes.c_int32),
        ("text", ctypes.POINTER(ctypes.c_char)),
        ("size", ctypes.c_size_t),
        ("logits", ctypes.POINTER(ctypes.c_float)),
        ("finish", ctypes.c_int),
    )


class Statistics(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("prompt_tokens", "tokens", "decoded", "steps", "drafted", "accepted")),
        *((name, ctypes.c_double) for name in ("prompt_seconds", "decode_seconds")),
    )


class History(ctypes.Structure):
    _fields_ = (
        ("tokens", ctypes.POINTER(ctypes.c_int32)),
        *((name, ctypes.c_size_t) for name in ("count", "prompt_count")),
    )


@dataclass(frozen=True)
class Answer:
    """texts: one a token, and what was held back at the end."""

    token_ids: tuple[int, ...]
    texts: tuple[bytes, ...]
    finish_reason: str
    statistics: Statistics

    @property
    def text(self) -> str:
        return b"".join(self.texts).decode()


class Text(ctypes.Structure):
    _fields_ = (("held", ctypes.c_ubyte * 4), ("count", ctypes.c_uint32))


class Library:
    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.dsv3c_error.restype = ctypes.c_char_p
        for name in ("dsv3c_text_bytes", "dsv3c_text_flush"):
            if hasattr(self.c, name):  # not where tests build a part of the library
                getattr(self.c, name).restype = ctypes.c_size_t

    def check(self, status: int) -> None:
        if status != 0:
            raise Failure(STATUS[status], self.c.dsv3c_error().decode())


class TextModel:
    """What can be done with text. handle: a dsv3c_model."""

    def __init__(self, library: Library, handle: ctypes.c_void_p) -> None:
        self.library, self.c, self.handle = library, library.c, handle

    def check(self, status: int) -> None:
        self.library.check(status)

    def encode(self, text: str | bytes, special: bool = True) -> list[int]:
        data = text if isinstance(text, bytes) else text.encode()
        tokens, count = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_size_t()
        size = ctypes.c_size_t(len(data))
        self.check(self.c.dsv3c_encode(self.handle, data, size, special, ctypes.byref(tokens), ctypes.byref(count)))
        ids = tokens[: count.value]
        ctypes.CDLL(None).free(tokens)
        return ids

    def chat(self, turns: Sequence[str], system: str | None = None) -> str:
        text, size = ctypes.POINTER(ctypes.c_char)(), ctypes.c_size_t()
        strings = (String * len(turns))(*map(String.of, turns))
        places = (ctypes.byref(text), ctypes.byref(size))
        count = ctypes.c_size_t(len(turns))
        self.check(self.c.dsv3c_chat(self.handle, String.of(system), strings, count, *places))
        found = text[: size.value]
        ctypes.CDLL(None).free(text)
        return found.decode()

    def decode(self, ids: Sequence[int]) -> list[bytes]:
        """What each token gives, and what is left at the end."""
        text, size, capacity = Text(), ctypes.c_size_t(), self.c.dsv3c_text_bytes(self.handle)
        out, pieces = ctypes.create_string_buffer(capacity), []
        for token in ids:
            arguments = (ctypes.byref(text), token, out, ctypes.c_size_t(capacity), ctypes.byref(size))
            self.check(self.c.dsv3c_text_push(self.handle, *arguments))
            pieces.append(out.raw[: size.value])
        left = self.c.dsv3c_text_flush(ctypes.byref(text), out)
        return [*pieces, out.raw[:left]]


class Model(TextModel):
    """An open artifact."""

    def __init__(self, artifact: Path, **options: int) -> None:
        super().__init__(Library(artifact / "native" / "libdsv3c_model.so"), ctypes.c_void_p())
        self.c.dsv3c_info_of.restype = Info
        self.c.dsv3c_sampling_defaults.restype = Sampling
        self.c.dsv3c_parameters_defaults.restype = Parameters
        self.c.dsv3c_generation_statistics.restype = Statistics
        self.check(self.c.dsv3c_open(bytes(artifact), ctypes.byref(Options(**options)), ctypes.byref(self.handle)))
        self.info = self.c.dsv3c_info_of(self.handle)

    def sequence(self) -> ctypes.c_void_p:
        found = ctypes.c_void_p()
        self.check(self.c.dsv3c_sequence_new(self.handle, ctypes.byref(found)))
        return found

    def fork(self, sequence: ctypes.c_void_p, length: int) -> ctypes.c_void_p:
        found = ctypes.c_void_p()
        self.check(self.c.dsv3c_sequence_fork(sequence, length, ctypes.byref(found)))
        return found

    def run(self, *requests: tuple[ctypes.c_void_p, Any, str]) -> list[np.ndarray]:
        """Logits [0, 1 or number of tokens, vocabulary] of each (sequence, tokens, want)."""
        tokens = [np.ascontiguousarray(ids, np.int32) for _, ids, _ in requests]
        most = {"none": 0, "last": 1, "all": 1 << 31}
        rows = [min(most[want], ids.size) for (_, _, want), ids in zip(requests, tokens, strict=True)]
        logits = [np.zeros((count, self.info.vocab_size), np.float32) for count in rows]
        made = [
            Request(sequence, ids.ctypes.data, ids.size, WANT[want], out.ctypes.data)
            for (sequence, _, want), ids, out in zip(requests, tokens, logits, strict=True)
        ]
        self.check(self.c.dsv3c_run(self.handle, (Request * len(made))(*made), ctypes.c_size_t(len(made))))
        return logits

    def length(self, sequence: ctypes.c_void_p) -> int:
        return self.c.dsv3c_sequence_length(sequence)

    def truncate(self, sequence: ctypes.c_void_p, length: int) -> None:
        self.check(self.c.dsv3c_sequence_truncate(sequence, length))

    def free(self, sequence: ctypes.c_void_p) -> None:
        self.c.dsv3c_sequence_free(sequence)

    def logits(self, ids: Any, want: str = "all") -> np.ndarray:
        """Of ids in a sequence of their own."""
        sequence = self.sequence()
        try:
            return self.run((sequence, ids, want))[0]
        finally:
            self.free(sequence)

    def generation(self, prompt: Sequence[int], speculate: str = "off", **params: Any) -> ctypes.c_void_p:
        """`params` are named as in SamplingParams; the others are the model's."""
        how = self.c.dsv3c_parameters_defaults(self.handle)
        for name, value in how.sampling.take(params).items():
            setattr(how, name, (String * len(value))(*map(String.of, value)) if name == "stop" else value)
        how.stop_count = len(params.get("stop", ()))
        how.speculation = SPECULATION[speculate]
        ids, found = Ids.of(prompt), ctypes.c_void_p()
        size = ctypes.c_size_t(ids.count)
        self.check(self.c.dsv3c_generation_new(self.handle, ids.ids, size, ctypes.byref(how), ctypes.byref(found)))
        return found

    def generate(self, prompt: Sequence[int], speculate: str = "off", **params: Any) -> Answer:
        generation, event = self.generation(prompt, speculate, **params), Event()
        tokens, texts = [], []
        try:
            while not event.finish:
                self.check(self.c.dsv3c_generation_next(generation, ctypes.byref(event)))
                tokens += [event.token] if event.token >= 0 else []
                texts.append(event.text[: event.size])
            statistics = self.c.dsv3c_generation_statistics(generation)
        finally:
            self.c.dsv3c_generation_free(generation)
        return Answer(tuple(tokens), tuple(texts), str(FINISH[event.finish]), statistics)

    def sampler(self, **params: Any) -> Sampler:
        return Sampler(self, params)

    def close(self) -> None:
        self.c.dsv3c_close(self.handle)
        self.handle = ctypes.c_void_p()


class Sampler:
    def __init__(self, model: Model, params: dict[str, Any]) -> None:
        self.model, self.handle = model, ctypes.c_void_p()
        how = Sampling()
        assert not how.take({"top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0} | params)
        model.check(model.c.dsv3c_sampler_new(model.handle, ctypes.byref(how), ctypes.byref(self.handle)))

    def sample(self, logits: np.ndarray, tokens: Sequence[int] = (), prompt_length: int = 0) -> int:
        token, ids = ctypes.c_int32(), Ids.of(tokens)
        history = History(ids.ids, ids.count, prompt_length)
        data = ctypes.c_void_p(np.ascontiguousarray(logits, np.float32).ctypes.data)
        self.model.check(self.model.c.dsv3c_sample(self.handle, data, ctypes.byref(history), ctypes.byref(token)))
        return token.value

    def free(self) -> None:
        self.model.c.dsv3c_sampler_free(self.handle)
