"""The C interface of an artifact's native library, called from Python."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

STATUS = (
    *("OK", "BAD_ARGUMENT", "FILE_MISSING", "FILE_DAMAGED", "ISA_UNKNOWN", "ISA_UNSUPPORTED", "OUT_OF_MEMORY"),
    *("OUT_OF_PAGES", "CONTEXT_EXCEEDED", "BAD_TOKEN", "BAD_TEXT", "NO_TOKENIZER", "NOT_FINITE", "KERNEL_FAILED"),
)
WANT = {"none": 0, "last": 1, "all": 2}


class Failure(Exception):
    """status: the name of the code, without DSV3C_."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Options(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int32) for name in ("threads", "context", "max_batch"))


class Info(ctypes.Structure):
    _fields_ = (
        ("level", ctypes.c_char_p),
        *((name, ctypes.c_int32) for name in ("threads", "vocab_size", "context", "has_tokenizer")),
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


class Sampling(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
        ("top_k", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
    )


class Text(ctypes.Structure):
    _fields_ = (("held", ctypes.c_ubyte * 4), ("count", ctypes.c_uint32))


class Library:
    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.dsv3c_error.restype = ctypes.c_char_p
        self.c.dsv3c_text_bytes.restype = ctypes.c_size_t
        self.c.dsv3c_text_flush.restype = ctypes.c_size_t

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

    def sampler(self, **params: Any) -> Sampler:
        return Sampler(self, params)

    def close(self) -> None:
        self.c.dsv3c_close(self.handle)
        self.handle = ctypes.c_void_p()


class Sampler:
    def __init__(self, model: Model, params: dict[str, Any]) -> None:
        self.model, self.handle = model, ctypes.c_void_p()
        how = Sampling(**{"top_p": 1.0, "repetition_penalty": 1.0} | params)
        model.check(model.c.dsv3c_sampler_new(model.handle, ctypes.byref(how), ctypes.byref(self.handle)))

    def observe(self, tokens: Sequence[int]) -> None:
        ids = np.array(tokens, np.int32)
        size = ctypes.c_size_t(ids.size)
        self.model.check(self.model.c.dsv3c_sampler_observe(self.handle, ctypes.c_void_p(ids.ctypes.data), size))

    def sample(self, logits: np.ndarray) -> int:
        token = ctypes.c_int32()
        data = ctypes.c_void_p(np.ascontiguousarray(logits, np.float32).ctypes.data)
        self.model.check(self.model.c.dsv3c_sample(self.handle, data, ctypes.byref(token)))
        return token.value

    def free(self) -> None:
        self.model.c.dsv3c_sampler_free(self.handle)
