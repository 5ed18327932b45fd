"""Find what a grammar can begin and never end: a rule, or a part of a JSON schema, that always needs itself again.

llguidance takes such grammars, and a text then runs into its limit. What is not understood here counts as having an
end: it only goes on until max_new_tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Many
from typing import Any
from urllib.parse import unquote

from dsv3c.runtime.engine.lark_rules import Choice, Expression, Inline, Name, Row, read_rules

Json = Any


def endless_part(name: str, text: str) -> str | None:
    """A sentence about it, for the value of a parameter that llguidance has taken; None if there is none."""
    if name == "json_schema":
        return _endless_schema(json.loads(text))
    return _endless_rule(text) if name == "grammar" else None


# ---- JSON schemas

_MANY = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties")
_ONE = ("items", "additionalProperties")


def _endless_schema(root: Json) -> str | None:
    targets = _targets(root)
    found = _least(list(targets), lambda ref, known: _ends(targets[ref], known))
    endless = next((ref for ref in targets if ref not in found), None)
    if endless is None:
        return None
    return f"what $ref {endless!r} names always needs another of its kind; leave it out of `required`, or allow null"


def _targets(root: Json) -> dict[str, Json]:
    """What references name, of those that can be reached from the root."""
    found: dict[str, Json] = {}
    todo = [root]
    while todo:
        schema = todo.pop()
        if not isinstance(schema, dict):
            continue
        todo += _parts(schema)
        ref = schema.get("$ref")
        if isinstance(ref, str) and ref.startswith("#") and ref not in found:
            found[ref] = _pointed(root, ref)
            todo.append(found[ref])
    return found


def _parts(schema: Mapping[str, Json]) -> Iterator[Json]:
    for key in _MANY:
        yield from _list(schema.get(key))
    for key in _NAMED:
        yield from _dict(schema.get(key)).values()
    for key in _ONE:
        yield from _list(schema.get(key)) or [schema.get(key)]


def _pointed(root: Json, ref: str) -> Json:
    """True, which is any value, for what is no pointer."""
    where = root
    for step in unquote(ref[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(where, list) and step.isdigit() and int(step) < len(where):
            where = where[int(step)]
        elif isinstance(where, dict) and step in where:
            where = where[step]
        else:
            return True
    return where if ref == "#" or ref.startswith("#/") else True


def _ends(schema: Json, known: set[str]) -> bool:
    """Whether some value of it ends, if what `known` references name does."""
    if not isinstance(schema, dict) or "const" in schema or "enum" in schema:
        return True
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref.startswith("#") and ref not in known:
        return False
    if not all(_ends(part, known) for part in _list(schema.get("allOf"))):
        return False
    for key in ("anyOf", "oneOf"):
        if _list(schema.get(key)) and not any(_ends(part, known) for part in schema[key]):
            return False
    given = schema.get("type")
    types = set(_list(given)) if isinstance(given, list) else {given}
    if not types <= {"object", "array"}:
        return True  # numbers, strings and others are short
    return ("object" in types and _object_ends(schema, known)) or ("array" in types and _array_ends(schema, known))


def _object_ends(schema: Mapping[str, Json], known: set[str]) -> bool:
    properties, others = _dict(schema.get("properties")), schema.get("additionalProperties", True)
    return all(_ends(properties.get(name, others), known) for name in _list(schema.get("required")))


def _array_ends(schema: Mapping[str, Json], known: set[str]) -> bool:
    least = schema.get("minItems", 0)
    first = _list(schema.get("prefixItems")) or _list(schema.get("items"))
    needed = first[: int(least)]
    rest = [schema.get("items", True)] if least > len(first) else []
    return all(_ends(part, known) for part in [*needed, *rest])


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _dict(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


# ---- grammars


def _endless_rule(text: str) -> str | None:
    rules = read_rules(text)
    if rules is None:
        return None
    found = _least(list(rules), lambda name, known: _rule_ends(rules[name], known, rules))
    reached, todo = set[str](), ["start"]
    while todo:
        name = todo.pop()
        if name in reached or name not in rules:
            continue
        reached.add(name)
        for part in _all_parts(rules[name]):
            if isinstance(part, Name):
                todo.append(part.name)
            elif isinstance(part, Inline) and (endless := _endless_schema(part.schema)) is not None:
                return f"%json of rule `{name}`: {endless}"
    endless_rule = next((name for name in rules if name in reached and name not in found), None)
    return None if endless_rule is None else f"rule `{endless_rule}` always needs itself again; give it another choice"


def _rule_ends(part: Expression, known: set[str], rules: Mapping[str, Expression]) -> bool:
    match part:
        case Name(name):
            return name in known or name not in rules
        case Row(parts):
            return all(_rule_ends(each, known, rules) for each in parts)
        case Choice(parts):
            return any(_rule_ends(each, known, rules) for each in parts)
        case _:
            return True


def _all_parts(part: Expression) -> Iterator[Expression]:
    yield part
    if isinstance(part, Row | Choice):
        for each in part.parts:
            yield from _all_parts(each)


def _least(names: Many[str], ends: Callable[[str, set[str]], bool]) -> set[str]:
    """The least set that has each of the names that end if those of the set do."""
    found, before = set[str](), -1
    while len(found) != before:
        before = len(found)
        # What stands later is mostly used by what stands before.
        for name in reversed(names):
            if name not in found and ends(name, found):
                found.add(name)
    return found
