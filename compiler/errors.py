"""Every mistake the compiler can report: one small class a mistake.

A class carries its message as a template and, where the user can do something, a hint. The fields of the template are
keyword arguments of the constructor and stay readable as attributes.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Dsv3cError(Exception):
    """Base of all errors that name a fault of the input or the machine (exit code 1).

    `message` and `hint` are templates over the keyword arguments of the constructor.
    """

    message: ClassVar[str] = "{text}"
    hint: ClassVar[str] = ""

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        text = self.message.format(**fields)
        hint = self.hint.format(**fields)
        super().__init__(f"{text}\n  hint: {hint}" if hint else text)
