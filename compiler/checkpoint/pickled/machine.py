"""A pickle machine that builds containers, numbers, texts and descriptions of tensors, and nothing else.

It is no subclass of Python's: opcodes that are not in the table below do not exist, names are looked up in a table of
values instead of being imported, and calls are four functions of this file. Opcodes: Python's `Lib/pickletools.py`;
what torch puts into a pickle: pytorch's `torch/serialization.py` and `torch/_utils.py`, protocol 2 (and, from other
programs, 4).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dsv3c.compiler.checkpoint.files import quote

# The bounds of honest files lie far below: a tensor takes some thirty steps.
MAX_STEPS = 1_000_000
MAX_TEXT = 1 << 16
_MAX_TENSOR_DIMS = 8


class Malformed(ValueError):
    """What is wrong with a pickle, as a sentence."""


class Refused(ValueError):
    """The name of something that a pickle asks for and that is no tensor or container."""


@dataclass(frozen=True)
class Storage:
    """Flat memory of `count` elements, kept in the file under `key`; dtype is a name of the safetensors format."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Type:
    """An element type, or that of a storage."""

    dtype: str


def _ordered_dict(*given: Any) -> dict[Any, Any]:
    if given:
        raise Malformed("an OrderedDict is made of something")
    return {}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2: hooks and what gradients need are of no use here."""
    if not isinstance(storage, Storage) or not _counts((offset,)) or not _counts(shape) or not _counts(strides):
        raise Malformed("a tensor is made of something other than a storage, an offset, sizes and strides")
    if len(shape) != len(strides) or len(shape) > _MAX_TENSOR_DIMS:
        raise Malformed(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
    if any(isinstance(metadata, dict) and metadata.get("neg") for metadata in rest):
        raise Malformed("a tensor is stored with other signs than it has")
    return Tensor(storage, storage.dtype, offset, shape, strides)


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, *rest: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v3, of types that have no storage of their own."""
    if not rest or not isinstance(rest[0], _Type):
        raise Malformed("a tensor has no element type")
    return replace(_tensor(storage, offset, shape, strides), dtype=rest[0].dtype)


def _parameter(tensor: Any, *rest: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Malformed("a parameter is made of something other than a tensor")
    return tensor


def _counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


_STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32", "Short": "I16",
    "Char": "I8", "Byte": "U8", "Bool": "BOOL",
}  # fmt: skip
_ELEMENTS = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip
_NAMES: dict[str, Any] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    **{f"torch.{name}Storage": _Type(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": _Type(dtype) for name, dtype in _ELEMENTS.items()},
    "torch.storage.UntypedStorage": _Type("U8"),
}
_CALLS: tuple[Callable[..., Any], ...] = (_ordered_dict, _tensor, _typed_tensor, _parameter)
_MARK = object()
_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False}
_NUMBERS = {ord("J"): "<i", ord("K"): "<B", ord("M"): "<H", ord("G"): ">d"}
_TEXTS = {ord("X"): ("<I", "utf-8"), 0x8C: ("<B", "utf-8"), ord("U"): ("<B", "ascii"), ord("T"): ("<I", "ascii")}


class Machine:
    """Runs one pickle of `data` from `at` on; `at` is then behind it. Raises Malformed and Refused."""

    def __init__(self, data: memoryview, at: int = 0) -> None:
        self.at = at
        self._data = data
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_STEPS):
            code = self._number("<B")
            if code == ord("."):
                return self._pop()
            self._step(code)
        raise Malformed(f"it has more than {MAX_STEPS} steps")

    def _step(self, code: int) -> None:
        if code in _CONSTANTS:
            self._stack.append(_CONSTANTS[code])
        elif code in _NUMBERS:
            self._stack.append(self._number(_NUMBERS[code]))
        elif code in _TEXTS:
            width, encoding = _TEXTS[code]
            self._stack.append(self._text(self._number(width), encoding))
        elif code in _STEPS:
            _STEPS[code](self)
        else:
            raise Malformed(f"it has the opcode 0x{code:02x}, which no file of tensors needs")

    def _bytes(self, count: int) -> memoryview:
        found = self._data[self.at : self.at + count]
        if len(found) < count:
            raise Malformed("it ends too early")
        self.at += count
        return found

    def _number(self, kind: str) -> Any:
        return struct.unpack(kind, self._bytes(struct.calcsize(kind)))[0]

    def _text(self, count: int, encoding: str) -> str:
        if count > MAX_TEXT:
            raise Malformed(f"it has a text of {count} bytes")
        try:
            return str(self._bytes(count), encoding)
        except UnicodeDecodeError as error:
            raise Malformed("it has a text that is none") from error

    def _line(self) -> str:
        end = self.at
        limit = min(len(self._data), self.at + 256)
        while end < limit and self._data[end] != ord("\n"):
            end += 1
        text = self._text(end - self.at, "utf-8")
        self._bytes(1)
        return text

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise Malformed("it takes more than it has")
        return self._stack.pop()

    def _to_mark(self) -> list[Any]:
        found: list[Any] = []
        while self._stack and self._stack[-1] is not _MARK:
            found.append(self._stack.pop())
        if not self._stack:
            raise Malformed("it takes more than it has")
        self._stack.pop()
        return found[::-1]

    def _push_tuple(self, count: int) -> None:
        self._stack.append(tuple(self._pop() for _ in range(count))[::-1])

    def _put(self, place: int) -> None:
        value = self._pop()
        self._memo[place] = value
        self._stack.append(value)

    def _get(self, place: int) -> None:
        if place not in self._memo:
            raise Malformed("it asks for what it has not kept")
        self._stack.append(self._memo[place])

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("it asks for a name that is no text")
        asked = f"{module}.{name}"
        if asked not in _NAMES:
            raise Refused(asked)
        self._stack.append(_NAMES[asked])

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _reduce(self) -> None:
        given, called = self._pop(), self._pop()
        if not any(called is known for known in _CALLS) or not isinstance(given, tuple):
            raise Malformed("it calls what is no function")
        try:
            self._stack.append(called(*given))
        except TypeError as error:
            raise Malformed("it calls a function with too few or too many values") from error

    def _build(self) -> None:
        """Attributes of an OrderedDict, such as `_metadata`, are of no use."""
        self._pop()
        if not isinstance(self._top(), dict):
            raise Malformed("it sets attributes of something other than an OrderedDict")

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise Malformed("it appends to what is no list")
        target.extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise Malformed("it sets items of what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int):
                raise Malformed("a key is neither a text nor a number")
            target[key] = value

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _persistent(self) -> None:
        """("storage", type, key, device, count), in legacy files with the part of another storage that it is."""
        found = self._pop()
        if not isinstance(found, tuple) or len(found) not in (5, 6) or found[0] != "storage":
            raise Malformed("it has a persistent id that is no storage")
        _, kind, key, _, count, *part = found
        if not isinstance(kind, _Type) or not isinstance(key, str) or not _counts((count,)):
            raise Malformed(f"it has a storage that is none: {quote(key)}")
        if part and part[0] is not None:
            raise Malformed(f"the storage {quote(key)} is a part of another, which only old versions of torch wrote")
        self._stack.append(Storage(kind.dtype, key, count))


_STEPS: dict[int, Callable[[Machine], None]] = {
    0x80: lambda m: _check_protocol(m._number("<B")),
    0x95: lambda m: m._number("<Q"),  # the length of a frame
    ord("("): lambda m: m._stack.append(_MARK),
    ord(")"): lambda m: m._push_tuple(0),
    0x85: lambda m: m._push_tuple(1),
    0x86: lambda m: m._push_tuple(2),
    0x87: lambda m: m._push_tuple(3),
    ord("t"): lambda m: m._stack.append(tuple(m._to_mark())),
    ord("]"): lambda m: m._stack.append([]),
    ord("a"): lambda m: m._append([m._pop()]),
    ord("e"): lambda m: m._append(m._to_mark()),
    ord("}"): lambda m: m._stack.append({}),
    ord("s"): Machine._set_item,
    ord("u"): lambda m: m._set_items(m._to_mark()),
    ord("q"): lambda m: m._put(m._number("<B")),
    ord("r"): lambda m: m._put(m._number("<I")),
    0x94: lambda m: m._put(len(m._memo)),
    ord("h"): lambda m: m._get(m._number("<B")),
    ord("j"): lambda m: m._get(m._number("<I")),
    0x8A: lambda m: m._stack.append(int.from_bytes(m._bytes(m._number("<B")), "little", signed=True)),
    ord("c"): lambda m: m._global(m._line(), m._line()),
    0x93: Machine._stack_global,
    ord("R"): Machine._reduce,
    ord("b"): Machine._build,
    ord("Q"): Machine._persistent,
}


def _check_protocol(version: int) -> None:
    if not 2 <= version <= 5:
        raise Malformed(f"it is of protocol {version}")
