"""The table of targets: strings are split strictly, and every row leads to a target."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dsv3c import targets
from dsv3c.compiler.errors import Dsv3cError


@pytest.fixture
def two_options(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = targets.TargetRow("no.such.module", "a target", {"cpu": "the CPU", "libs": "the libraries"})
    monkeypatch.setattr(targets, "TABLE", {"toy": entry})


def test_a_name_alone() -> None:
    assert targets.parse("x86") == targets.TargetString("x86", {})


@pytest.mark.usefixtures("two_options")
def test_options_print_as_they_parse() -> None:
    parsed = targets.parse("toy:cpu=a,libs=b")
    assert parsed.options == {"cpu": "a", "libs": "b"}
    assert targets.parse(str(parsed)) == parsed


@pytest.mark.usefixtures("two_options")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("toy:cpu", "'cpu' is not option=value"),
        ("toy:cpu=", "is not option=value"),
        ("toy:cpu=a,", "'' is not option=value"),
        ("toy:cpu=a,cpu=b", "stands twice"),
        ("toy:gpu=a", "its options are cpu, libs"),
        ("", "the known targets are toy"),
    ],
)
def test_malformed_strings(text: str, says: str) -> None:
    with pytest.raises(Dsv3cError, match=says):
        targets.parse(text)


@pytest.mark.usefixtures("two_options")
def test_an_option_is_added_unless_there_is_another_value() -> None:
    parsed = targets.parse("toy:cpu=a")
    assert str(parsed.choosing("libs", "b")) == "toy:cpu=a,libs=b"
    assert parsed.choosing("cpu", "a") == parsed
    with pytest.raises(targets.OptionDiffers, match="toy:cpu=a has an option 'cpu' of its own, which is not 'b'"):
        parsed.choosing("cpu", "b")
    with pytest.raises(targets.UnknownTargetOption, match="no option 'gpu'\n  hint: its options are cpu, libs"):
        parsed.choosing("gpu", "a")


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(targets.UnknownTarget, match="x86"):
        targets.get("z80")


@pytest.mark.parametrize("name", targets.available())
def test_every_target_is_there_under_its_name(name: str) -> None:
    assert targets.get(name).name == name


def test_listing_imports_no_target() -> None:
    script = "import sys; from dsv3c import targets; targets.available(); targets.parse('x86')\n"
    script += "sys.exit(str([m for m in sys.modules if m.startswith('dsv3c.targets.')] or '') or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
