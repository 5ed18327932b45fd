"""The search: what it records, that it goes on where it stopped, and that Ctrl-C loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dsv3c.compiler import tune
from dsv3c.compiler.options import CompileOptions
from dsv3c.compiler.tune import Speed, TuneReport
from dsv3c.targets.cpu.tuning import Tuning
from dsv3c.targets.x86.levels import LEVELS

pytest.importorskip("optuna", reason="optuna is not installed")


class Machine:
    """Stands for the measurement: a model of a machine on which some numbers are faster."""

    level = LEVELS[0]

    def __init__(self, speed: Callable[[Tuning], Speed]) -> None:
        self.speed = speed
        self.asked: list[Tuning] = []

    def measure(self, tuning: Tuning) -> Speed:
        self.asked.append(tuning)
        return self.speed(tuning)


def search(monkeypatch: pytest.MonkeyPatch, records: Path, machine: Machine, trials: int) -> TuneReport:
    @contextmanager
    def bench(*_: Any) -> Iterator[Machine]:
        yield machine

    monkeypatch.setattr(tune, "_bench", bench)
    return tune.tune(Path("model"), CompileOptions(), 60.0, trials, records)


def prefers_small_tiles(tuning: Tuning) -> Speed:
    return Speed(100.0 / tuning.token_tile, 10.0)


def test_the_defaults_are_the_first_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(prefers_small_tiles)
    search(monkeypatch, tmp_path, machine, 1)
    assert machine.asked[0] == Tuning()


def test_the_best_choice_is_recorded_with_both_speeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = search(monkeypatch, tmp_path, Machine(prefers_small_tiles), 30)
    assert report.tuning.token_tile == 2
    assert (report.default.prefill, report.best.prefill) == (25.0, 50.0)
    content = json.loads(report.record.read_text())
    assert content["tuning"] == report.tuning.to_json()
    assert content["level"] == LEVELS[0].name
    assert content["measured"]["tokens_per_second"]["tuned"] == {"prefill": 50.0, "decode": 10.0}


def test_a_second_run_goes_on_with_the_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search(monkeypatch, tmp_path, Machine(prefers_small_tiles), 3)
    report = search(monkeypatch, tmp_path, Machine(prefers_small_tiles), 2)
    assert report.trials == 2
    assert json.loads(report.record.read_text())["measured"]["trials"] == 5


def test_ctrl_c_keeps_the_best_so_far(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = 0

    def speed(tuning: Tuning) -> Speed:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return prefers_small_tiles(tuning)

    report = search(monkeypatch, tmp_path, Machine(speed), 10)
    assert report.interrupted
    assert report.trials == 3
    assert report.record.exists()


def test_ctrl_c_before_the_first_result_leaves_no_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def speed(tuning: Tuning) -> Speed:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(monkeypatch, tmp_path, Machine(speed), 10)
    assert not list(tmp_path.glob("*.json"))


def test_luck_in_a_trial_does_not_become_a_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: set[Tuning] = set()

    def speed(tuning: Tuning) -> Speed:
        lucky = tuning not in seen and tuning != Tuning()
        seen.add(tuning)
        return Speed(1000.0, 10.0) if lucky else Speed(100.0 if tuning == Tuning() else 50.0, 10.0)

    report = search(monkeypatch, tmp_path, Machine(speed), 5)
    assert report.tuning == Tuning()
