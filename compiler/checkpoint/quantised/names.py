"""The modules that a quantization_config leaves out, by the ways that formats name them.

Patterns come from a file that nobody vouches for: one that is not followed says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.patterns import follower


def modules(config: ConfigFields, key: str) -> tuple[str, ...]:
    """The list of names under `key`, empty when it is absent. Raises ConfigValueError."""
    found = config.values.get(key)
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise config.wrong(key, "a list of names of modules")
    return tuple(found)


def naming(module: str, entries: Sequence[str]) -> str | None:
    """The entry that names `module`, as transformers has them: some of its components in a row, `*` for any one."""
    components = module.split(".")
    for entry in entries:
        wanted = entry.split(".")
        starts = range(len(components) - len(wanted) + 1)
        if any(_alike(components[start : start + len(wanted)], wanted) for start in starts):
            return entry
    return None


def matching(module: str, entries: Sequence[str]) -> str | None:
    """The entry that matches `module`, as compressed-tensors has them: its whole name, or a pattern behind `re:`."""
    for entry in entries:
        if entry == module or (entry.startswith("re:") and follows(entry.removeprefix("re:"), module)):
            return entry
    return None


def follows(pattern: str, module: str) -> bool:
    """Whether re.match finds the pattern, as far as it is of the kind that is followed; else False."""
    found = follower(pattern)
    return found is not None and found(module)


def _alike(components: Sequence[str], wanted: Sequence[str]) -> bool:
    return all(each in ("*", component) for component, each in zip(components, wanted, strict=True))
