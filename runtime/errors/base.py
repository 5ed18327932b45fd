"""What all errors are made of: a message as a template, a hint that says what to do."""

from __future__ import annotations

from typing import Any, ClassVar, Self


class Dsv3cError(Exception):
    """Base of all errors that name a fault of the input or the machine (exit code 1)."""

    message: ClassVar[str] = "{text}"
    hint: ClassVar[str] = ""

    def __init__(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        text = self.message.format(**fields)
        hint = self.hint.format(**fields)
        super().__init__(f"{text}\n  hint: {hint}" if hint else text)

    def again(self) -> Self:
        """The same error, to be raised in another place or thread."""
        return type(self)(**vars(self))

    @property
    def code(self) -> str:
        return type(self).__name__


class RuntimeFault(Dsv3cError):
    """Base of all faults of an artifact, a machine or a request that the runtime names."""


class Unforeseen(RuntimeFault):
    """Something else than a RuntimeFault that came up on the way, its cause: its text may have some of what was asked,
    so that only its class is told, and where it was raised."""

    message = "{what} failed: {where}"
    hint = "free memory, if it is a MemoryError; else this is a fault of dsv3c, DSV3C_DEBUG=1 shows more"

    @staticmethod
    def of(error: Exception, what: str) -> Unforeseen:
        found = Unforeseen(what=what, where=place_of(error))
        found.__cause__ = error
        return found


def place_of(error: BaseException) -> str:
    """The class of an exception, and where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" at {trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
    return f"{type(error).__name__}{where}"


class ArtifactFault(RuntimeFault):
    """Base of everything that is wrong with the files of an artifact."""


class RequestFault(RuntimeFault):
    """Base of everything that is wrong with one request; the model stays usable."""
