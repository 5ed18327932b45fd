"""Which kernel an error is of, and how it is found among many."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dsv3c.compiler.core.blame import blame, building, culprit, failed_kernel
from dsv3c.compiler.errors import BadOptionError, VerifyError, is_fault


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_one_of_many_is_found_by_halves(count: int) -> None:
    for wrong in range(count):
        asked = []

        def fails(items: Sequence[int], wrong: int = wrong, asked: list[int] = asked) -> bool:
            asked.append(len(items))
            return wrong in items

        assert culprit(range(count), fails) == wrong
        assert sum(asked) <= count + 1


def test_what_fails_together_alone_is_nobodys() -> None:
    assert culprit([1, 2, 3, 4], lambda items: len(items) > 1) is None
    assert culprit([], lambda items: True) is None


def test_a_fault_says_whose_it_is_and_keeps_what_was_said_first() -> None:
    with pytest.raises(KeyError) as caught, building("outer", "low"), building("inner", "high"):
        raise KeyError("x")
    assert failed_kernel(caught.value) == ("'inner'", "high")
    blame(caught.value, "later")
    assert failed_kernel(caught.value) == ("'inner'", "high")


def test_what_is_no_fault_of_the_compiler_is_no_kernels() -> None:
    for error in (BadOptionError(option="a", value="b", expected="c"), OSError(28, "full"), MemoryError()):
        assert not is_fault(error)
        with pytest.raises(type(error)), building("spec"):
            raise error
        assert failed_kernel(error) is None
    assert is_fault(VerifyError(where="", reason="", context=""))
