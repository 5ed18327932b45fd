"""What is run by hand: it starts, and `make bench` runs what needs no argument."""

from importlib import import_module
from pathlib import Path

import pytest

SCRIPTS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("test_"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_says_how_it_is_run_and_that_finds_it(name):
    script = import_module(f"tests.bench.{name}")
    assert f"python -m {script.__name__}" in script.__doc__ and callable(script.main)


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name.startswith("bench_")])
def test_what_make_runs_needs_no_argument(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit):
        import_module(f"tests.bench.{name}").main()
    assert "positional arguments" not in capsys.readouterr().out
