"""Typed access to the keys of a GGUF file: every value is checked, every fault names file, key and value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.checkpoint.errors import ConfigValueError, MissingConfigKeyError, UnsupportedConfigError
from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.gguf.container import Value


@dataclass(frozen=True)
class Keys:
    """The keys of the file `path` that begin with `prefix`, without it; `asked` are those that were asked for, whole.

    None stands for a key that is absent. Each raises ConfigValueError for a value of another kind.
    """

    values: Mapping[str, Value]
    path: Path
    prefix: str = ""
    asked: set[str] = field(default_factory=set)

    def under(self, prefix: str) -> Keys:
        """Other keys of the file."""
        return Keys(self.values, self.path, prefix)

    def within(self, prefix: str) -> Keys:
        """Some of these, which count as asked for here."""
        return Keys(self.values, self.path, self.prefix + prefix, self.asked)

    def integer(self, key: str) -> int | None:
        value = self._value(key)
        if value is not None and type(value) is not int:
            raise self.wrong(key, "an integer")
        return value

    def number(self, key: str) -> float | None:
        """A float32 as the shortest decimal number that is rounded to it: what its JSON had."""
        value = self._value(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, "a finite number")
        with np.errstate(over="ignore"):
            short = float(str(np.float32(value)))
        return short if np.float32(value) == value else float(value)

    def boolean(self, key: str) -> bool | None:
        value = self._value(key)
        if value is not None and type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        value = self._value(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def texts(self, key: str) -> list[str] | None:
        value = self._value(key)
        if value is None:
            return None
        if not isinstance(value, tuple):
            raise self.wrong(key, "a list of texts")
        try:
            return [text.decode("utf-8") for text in value]
        except UnicodeDecodeError as error:
            raise self.wrong(key, "a list of texts in UTF-8") from error

    def numbers(self, key: str) -> NDArray[Any] | None:
        value = self._value(key)
        if value is not None and not isinstance(value, np.ndarray):
            raise self.wrong(key, "a list of numbers")
        return value

    def required(self, key: str) -> int:
        """An integer. Raises MissingConfigKeyError too."""
        value = self.integer(key)
        if value is None:
            raise MissingConfigKeyError(path=self.path, key=self.prefix + key)
        return value

    def wrong(self, key: str, expected: str) -> ConfigValueError:
        return ConfigValueError(path=self.path, key=self.prefix + key, value=self._quoted(key), expected=expected)

    def unsupported(self, key: str, reason: str) -> UnsupportedConfigError:
        return UnsupportedConfigError(path=self.path, key=self.prefix + key, value=self._quoted(key), reason=reason)

    def unknown(self) -> list[str]:
        """The keys that nobody asked for."""
        found = (key for key in self.values if key.startswith(self.prefix) and key not in self.asked)
        return [key.removeprefix(self.prefix) for key in found]

    def _value(self, key: str) -> Value | None:
        self.asked.add(self.prefix + key)
        return self.values.get(self.prefix + key)

    def _quoted(self, key: str) -> str:
        value = self.values.get(self.prefix + key)
        if isinstance(value, tuple | np.ndarray):
            return f"a list of {len(value)}"
        return quote(value)
