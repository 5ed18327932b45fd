"""The search: what it records, that it goes on where it stopped, and that Ctrl-C loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsv3c.compiler.driver import artifact, tune
from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.driver.tune import Speed, TuneReport
from dsv3c.compiler.errors import NotTunableError
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.cpu.tuning import BadTuningRecord, Tuning
from dsv3c.targets.x86.levels import LEVELS
from tests.checkpoints import tiny_config, write_checkpoint
from tests.targets.cpu.unbuilt import unbuilt

pytestmark = pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed")


class Machine:
    """Stands for the measurement: a model of a machine on which some numbers are faster."""

    level = LEVELS[-1]
    quant = "int8"

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
    assert content["level"] == LEVELS[-1].name
    assert content["measured"]["tokens_per_second"]["tuned"] == {"prefill": 50.0, "decode": 10.0}


def test_a_machine_that_becomes_faster_does_not_choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The last trials are the fastest whatever they choose; what counts is what they gain over the defaults."""
    calls = 0

    def speed(tuning: Tuning) -> Speed:
        nonlocal calls
        calls += 1
        faster = 1.02**calls
        return Speed(prefers_small_tiles(tuning).prefill * faster, 10.0 * faster)

    assert search(monkeypatch, tmp_path, Machine(speed), 30).tuning.token_tile == 2


def test_a_second_run_goes_on_with_the_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search(monkeypatch, tmp_path, Machine(prefers_small_tiles), 3)
    report = search(monkeypatch, tmp_path, Machine(prefers_small_tiles), 2)
    assert report.trials == 2
    assert json.loads(report.record.read_text())["measured"]["trials"] == 5


def test_a_search_among_other_choices_begins_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search(monkeypatch, tmp_path, Machine(prefers_small_tiles), 3)
    monkeypatch.setattr(tune, "SPACE", {**tune.SPACE, "prefetch_bytes": (1024, 4096)})
    search(monkeypatch, tmp_path, Machine(prefers_small_tiles), 2)
    assert json.loads((tmp_path / f"{tune.cpu_name()}.json").read_text())["measured"]["trials"] == 2


def test_what_was_measured_at_lower_levels_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = search(monkeypatch, tmp_path, Machine(prefers_small_tiles), 1).record
    lower = {LEVELS[0].name: {"tuning": {"prefetch_bytes": 512}, "measured": {}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lower": lower}))
    search(monkeypatch, tmp_path, Machine(prefers_small_tiles), 1)
    assert json.loads(path.read_text())["lower"] == lower


def test_ctrl_c_keeps_the_best_so_far(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = 0

    def speed(tuning: Tuning) -> Speed:
        nonlocal calls
        calls += 1
        if calls == 10:  # each trial measures its choice between the defaults
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


@pytest.mark.parametrize(
    "options",
    [None, [], {"speed": 1}, {"max_tokens": "64"}, {"max_tokens": True}, {"target": None}, {"target": 3}, {"emit": []}],
    ids=str,
)
def test_only_options_that_are_known_are_taken_from_an_artifact(monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    opened = SimpleNamespace(manifest=SimpleNamespace(content={"options": options}))
    monkeypatch.setattr(tune.Artifact, "open", lambda folder: opened)
    if options == {"emit": []}:
        assert tune.options_of(Path("out")) == CompileOptions()
        return
    with pytest.raises(NotTunableError, match=r"out cannot be tuned: its manifest\.json has no options"):
        tune.options_of(Path("out"))


def test_formats_of_single_weights_are_taken_from_an_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    options = CompileOptions(quant="auto", max_size=10**9, formats={"layers.0.attention.o_proj": "int8-g32"})
    content: dict[str, Any] = {"options": options.to_dict(), "quantization": {"formats": dict(options.formats)}}
    opened = SimpleNamespace(manifest=SimpleNamespace(content=content))
    monkeypatch.setattr(tune.Artifact, "open", lambda folder: opened)
    assert tune.options_of(Path("out")) == options
    content["quantization"]["formats"] = {"layers.0.attention.o_proj": 8}
    with pytest.raises(NotTunableError, match="formats of weights that are none"):
        tune.options_of(Path("out"))


@pytest.mark.parametrize("suffix", ["json", "journal"])
@pytest.mark.parametrize("text", ["dear diary", "{}\n", "[" * 100_000], ids=["text", "object", "deep"])
def test_what_is_no_record_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str, text: str
) -> None:
    path = tmp_path / f"{tune.cpu_name()}.{suffix}"
    path.write_text(text)
    with pytest.raises(BadTuningRecord):
        search(monkeypatch, tmp_path, Machine(prefers_small_tiles), 1)
    assert path.read_text() == text


def test_luck_in_a_trial_does_not_become_a_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: set[Tuning] = set()

    def speed(tuning: Tuning) -> Speed:
        lucky = tuning not in seen and tuning != Tuning()
        seen.add(tuning)
        return Speed(1000.0, 10.0) if lucky else Speed(100.0 if tuning == Tuning() else 50.0, 10.0)

    report = search(monkeypatch, tmp_path, Machine(speed), 5)
    assert report.tuning == Tuning()


def compiled(folder: Path) -> Path:
    """A small model with an MTP layer, as an artifact."""
    config = tiny_config(num_nextn_predict_layers=1, vocab_size=100)
    write_checkpoint(folder / "model", config)
    out = compile_checkpoint(folder / "model", folder / "out", CompileOptions(quant="int8", max_tokens=64)).out
    assert out is not None
    return out


@pytest.mark.thorough  # half a minute
@pytest.mark.usefixtures("kernels_for_this_cpu_alone")
def test_an_artifact_is_tuned_without_its_checkpoint(tmp_path: Path) -> None:
    out, records = compiled(tmp_path), tmp_path / "records"
    before = {path.name for path in tmp_path.iterdir()}
    monkey = pytest.MonkeyPatch()
    monkey.setattr(tune, "PROMPT_TOKENS", 16)
    monkey.setattr(tune, "NEW_TOKENS", 4)
    monkey.setattr(tune, "FINAL_ROUNDS", 1)
    with monkey.context():
        report = tune.tune(out, CompileOptions(quant="float32"), 60.0, 2, records)
    content = json.loads(report.record.read_text())
    assert content["measured"]["quant"] == "int8", "the artifact's own format, not the one of the options"
    assert report.trials == 2
    assert {path.name for path in tmp_path.iterdir()} == before | {"records"}, "nothing is left beside the artifact"


def test_an_artifact_of_another_plan_is_refused(tmp_path: Path) -> None:
    with unbuilt():
        other = compiled(tmp_path)
    plan = json.loads((other / "plan.json").read_text())
    plan["entries"]["decode"]["min_tokens"] = 2
    (other / "plan.json").write_text(json.dumps(plan))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"] = {name: entry for name, entry in artifact.file_table(other).items() if name in manifest["files"]}
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(NotTunableError, match="another plan"):
        tune.tune(other, CompileOptions(), 60.0, 1, tmp_path / "records")
    assert not list((tmp_path / "records").glob("*.json"))
