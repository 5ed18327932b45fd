"""What a tool's JSON schema says of an argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsv3c.runtime.text.dialects.forms import Tools


def is_known(tools: Tools, name: str) -> bool:
    return any(tool["function"]["name"] == name for tool in tools)


def argument_kinds(tools: Tools, name: str | None, key: str) -> frozenset[str]:
    """The JSON types that the argument may have; empty: the schema says nothing of it."""
    schemas = (tool["function"].get("parameters") for tool in tools if tool["function"]["name"] == name)
    return _kinds(_property(next(schemas, None), key), 0)


def kind_of(value: Any) -> str:
    """The JSON type of a parsed value; every number is one."""
    if isinstance(value, bool):
        return "boolean"
    kinds = {str: "string", int: "number", float: "number", dict: "object", list: "array"}
    return kinds.get(type(value), "null")


def _property(schema: Any, key: str) -> Any:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties.get(key) if isinstance(properties, Mapping) else None


def _kinds(schema: Any, depth: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or depth > 8:
        return frozenset()
    if "enum" in schema and isinstance(schema["enum"], list):
        return frozenset(kind_of(value) for value in schema["enum"])
    if "const" in schema:
        return frozenset({kind_of(schema["const"])})
    named = schema.get("type")
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    found = {"number" if name == "integer" else str(name) for name in names}
    for word in ("anyOf", "oneOf"):
        several = schema.get(word)
        for each in several if isinstance(several, list) else []:
            found |= _kinds(each, depth + 1)
    return frozenset(found)
