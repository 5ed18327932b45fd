"""Sizes and columns, as all commands print them."""

from __future__ import annotations

import pytest

from dsv3c.runtime.cli import output


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_995, "10.0 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (5_900_000_000, "5.90 GB"),
        (1.2e15, "1200 TB"),
    ],
)
def test_sizes_have_three_digits(count: float, text: str) -> None:
    assert output.size(count) == text


def test_columns_align_numbers_right() -> None:
    rows = [("a", "9.99 MB", "x"), ("long name", "100 kB", "")]
    assert output.columns(rows) == ["a          9.99 MB  x", "long name   100 kB"]


def test_columns_of_ragged_rows() -> None:
    assert output.columns([("a",), ("b", "c")]) == ["a", "b  c"]
    assert output.columns([]) == []


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (999, "999"),
        (1000, "1 thousand"),
        (999_600_000, "1 billion"),
        (671_026_419_200, "671 billion"),
        (1_026_000_000_000, "1.03 trillion"),
        (2_500_000_000_000_000, "2500 trillion"),
    ],
)
def test_counts_are_told_in_words(count: int, says: str) -> None:
    assert output.number(count) == says
