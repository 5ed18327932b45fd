"""Typed access to parsed JSON: each reader checks one shape and reports where it went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dsv3c.runtime.errors import ManifestInvalid, PlanInvalid, WeightsInvalid

Fault = type[ManifestInvalid] | type[PlanInvalid] | type[WeightsInvalid]


class Fields:
    """A JSON object with the path that leads to it (`where`) and the fault class its readers raise."""

    def __init__(self, value: Any, where: str, fault: Fault) -> None:
        if not isinstance(value, dict):
            raise fault(where=where, reason=f"must be an object, not {type(value).__name__}")
        self.value: Mapping[str, Any] = value
        self.where = where
        self.fault = fault

    def fail(self, key: str, reason: str) -> Exception:
        return self.fault(where=f"{self.where}.{key}", reason=reason)

    def get(self, key: str) -> Any:
        if key not in self.value:
            raise self.fail(key, "is missing")
        return self.value[key]

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        if default is not None and key not in self.value:
            return default
        value = self.get(key)
        if type(value) is not int:
            raise self.fail(key, f"must be an integer, not {type(value).__name__}")
        if not low <= value <= high:
            raise self.fail(key, f"is {_short(value)}, it must be from {low} to {high}")
        return value

    def number(self, key: str) -> float | None:
        """A finite number; None where the file says null."""
        value = self.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.fail(key, "must be a finite number or null")
        return float(value)

    def string(self, key: str, default: str | None = None) -> str:
        if default is not None and key not in self.value:
            return default
        value = self.get(key)
        if not isinstance(value, str) or not value or "\0" in value:
            raise self.fail(key, "must be a non-empty string")
        return value

    def list(self, key: str) -> list[Any]:
        value = self.get(key)
        if not isinstance(value, list):
            raise self.fail(key, f"must be a list, not {type(value).__name__}")
        return value

    def object(self, key: str) -> Fields:
        return Fields(self.get(key), f"{self.where}.{key}", self.fault)


def _short(value: int) -> str:
    # str() of an integer with thousands of digits raises in CPython.
    return str(value) if value.bit_length() < 128 else f"about 2**{value.bit_length() - 1}"
