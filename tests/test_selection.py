"""What of the suite is run."""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import pairwise

import pytest

from tests.conftest import TESTS
from tests.selection import LONG, parse_part, part_of


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/4", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not K/N"):
        parse_part(text)


def test_files_that_begin_first_are_there() -> None:
    files = [path.as_posix() for path in TESTS.rglob("test_*.py")]
    assert [name for name in LONG if not any(file.endswith(f"/{name}") for file in files)] == []


def test_each_test_is_in_one_part_of_about_the_same_size() -> None:
    files = ["long"] * 103 + [f"short-{number}" for number in range(200)] + ["middle"] * 10
    found = part_of(files, 4)
    assert set(found) == {1, 2, 3, 4}
    assert max(Counter(found).values()) < 1.3 * len(files) / 4
    # Neighbours share what a file prepares: a file is cut in three places, not around each test.
    long = found[:103]
    assert sum(a != b for a, b in pairwise(long)) == 3
    assert parse_part("2/4") == (2, 4)
