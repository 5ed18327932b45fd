"""What the target string of x86 chooses."""

from __future__ import annotations

import pytest

from dsv3c import targets
from dsv3c.targets.x86 import TARGET, UnknownLevel
from dsv3c.targets.x86.levels import LEVELS


def test_kernels_are_built_for_every_level_unless_one_is_chosen() -> None:
    assert TARGET.configured({}).levels() == LEVELS
    chosen = targets.parse("x86:level=x86-64-v4").options
    assert [level.name for level in TARGET.configured(chosen).levels()] == ["x86-64-v4"]


def test_a_level_that_is_none_is_told_with_those_that_are() -> None:
    with pytest.raises(UnknownLevel, match="has no kernel level 'avx2'\n  hint: its levels are x86-64-v3, x86-64-v4,"):
        TARGET.configured({"level": "avx2"})
