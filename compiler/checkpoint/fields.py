"""Typed access to the keys of a config.json: every value is checked, every fault names file, key and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint.errors import ConfigValueError, MissingConfigKeyError, UnsupportedConfigError
from dsv3c.compiler.checkpoint.files import quote

MAX_WIDTH = 2**20  # of a row of weights: far above every published model


@dataclass(frozen=True)
class ConfigFields:
    """The object `values` of the file `path`; `prefix` names the object when it lies inside another.

    A key whose value is null counts as absent. `integer`, `number`, `boolean` and `choice` raise MissingConfigKeyError
    when the key is absent and no default is given, ConfigValueError when its value is not of the kind or out of range.
    """

    values: Mapping[str, Any]
    path: Path
    prefix: str = ""

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether null is given, for keys where that stands for a value."""
        return key in self.values and self.values[key] is None

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self._value(key, default)
        if type(value) is not int or not low <= value <= high:  # a bool is not a number
            raise self.wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number of the closed range."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low:.7g} to {high:.7g}")
        return float(value)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def choice(self, key: str, known: Sequence[str], default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str) or value not in known:
            raise self.wrong(key, "one of " + ", ".join(known))
        return value

    def object(self, key: str) -> ConfigFields:
        """The object under `key`, empty when it is absent."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return ConfigFields(value, self.path, f"{self.prefix}{key}.")

    def wrong(self, key: str, expected: str) -> ConfigValueError:
        value = quote(self.values.get(key))
        return ConfigValueError(path=self.path, key=self.prefix + key, value=value, expected=expected)

    def unsupported(self, key: str, reason: str) -> UnsupportedConfigError:
        value = quote(self.values.get(key))
        return UnsupportedConfigError(path=self.path, key=self.prefix + key, value=value, reason=reason)

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise MissingConfigKeyError(path=self.path, key=self.prefix + key)
        return value
