"""Search the numbers of the CPU kernels by measuring whole steps of a real model on this machine.

A trial builds the kernels of the best level of this CPU with one choice of parameters, puts them beside the weights of
an artifact that is compiled once, and measures decode and prefill through the runtime. The search is Optuna's TPE over
a journal file, so that a run goes on where the last one stopped and several processes can share one study.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint, ModelConfig
from dsv3c.compiler.checkpoint.expected import optional_tensors, required_tensors
from dsv3c.compiler.core.target import Planned, Target
from dsv3c.compiler.driver import artifact
from dsv3c.compiler.driver.lowering import lower
from dsv3c.compiler.driver.pipeline import compile_checkpoint, settled
from dsv3c.compiler.driver.workplace import MAKING, sweep, workplace, write_whole
from dsv3c.compiler.errors import NotTunableError, TunerMissingError
from dsv3c.compiler.options import AUTO, CompileOptions
from dsv3c.runtime.artifact.artifact import MANIFEST, Artifact
from dsv3c.runtime.devices.cpu.features import cpu_flags, permitted
from dsv3c.runtime.progress import Progress, Silent
from dsv3c.targets.cpu.emit import emit
from dsv3c.targets.cpu.families import cpu_name, marketed_name
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.plan import plan
from dsv3c.targets.cpu.tuning import RECORDS, SPACE, BadTuningRecord, Tuning, read_record

PROMPT_TOKENS = 256
NEW_TOKENS = 24
REPETITIONS = 3  # of each measurement in a trial; the median counts
FINAL_ROUNDS = 5  # default and best in turn, at the end


@runtime_checkable
class TunableTarget(Target, Protocol):
    """A target whose kernels have the numbers of `Tuning`."""

    def levels(self) -> tuple[IsaLevel, ...]: ...


@dataclass(frozen=True)
class Speed:
    """Tokens per second."""

    prefill: float
    decode: float

    def best(self, other: Speed) -> Speed:
        """The higher of each, so that what disturbed one measurement does not count."""
        return Speed(max(self.prefill, other.prefill), max(self.decode, other.decode))

    def score(self, default: Speed) -> float:
        """What the search minimises: the logarithm of the time of a prefill token times that of a decode token, both
        as multiples of the times of the defaults, measured beside it. The machine's own speed drifts by more than what
        is searched for."""
        return math.log(default.prefill * default.decode) - math.log(self.prefill * self.decode)


@dataclass(frozen=True)
class TuneReport:
    """What was found: `default` and `best` were measured in turn at the end, in one run."""

    record: Path
    tuning: Tuning
    trials: int
    default: Speed
    best: Speed
    interrupted: bool


def tune(
    model: Path,
    options: CompileOptions,
    seconds: float,
    trials: int | None,
    records: Path = RECORDS,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> TuneReport:
    """Search for at most `seconds` or `trials` new trials, and write records/<cpu>.json.

    model: a checkpoint, which is compiled with `options` first, or an artifact, whose own options hold.

    `tell` gets a line for each better choice. Ctrl-C ends the search and keeps what was found so far.
    Raises TunerMissingError without Optuna, NotTunableError, and what `compile_checkpoint` raises.
    """
    progress = progress or Silent()
    cpu = cpu_name()
    for note in sweep(model.resolve(), artifact.remove):
        tell(f"note: {note}")
    records.mkdir(parents=True, exist_ok=True)
    before = read_record(cpu, records) or {}  # what is no record is not replaced
    with _bench(model, options, progress) as bench:
        name = model.resolve().name
        study = _study(
            records / f"{cpu}.journal", f"{bench.level.name}/{name}/{bench.quant}/{_choices()}", bench.level.tuning
        )
        done, interrupted = _search(study, bench, seconds, trials, progress, tell)
        best = Tuning(**study.best_params)
        progress.stage("measuring the best against the defaults", FINAL_ROUNDS)
        default_speed, best_speed = _compare(bench, bench.level.tuning, best, progress)
    if best_speed.score(default_speed) > 0:
        best, best_speed = bench.level.tuning, default_speed  # what won a trial by luck does not become a record
    content = {
        "cpu": cpu,
        "level": bench.level.name,
        "tuning": best.to_json(),
        "measured": {
            "cpu": marketed_name(),
            "model": name,
            "quant": bench.quant,
            "threads": os.cpu_count(),
            "dsv3c": version("dsv3c"),
            "trials": len(study.trials),
            "tokens_per_second": {
                "default": {"prefill": round(default_speed.prefill, 1), "decode": round(default_speed.decode, 1)},
                "tuned": {"prefill": round(best_speed.prefill, 1), "decode": round(best_speed.decode, 1)},
            },
        },
    }
    if "lower" in before:
        content["lower"] = before["lower"]
    path = records / f"{cpu}.json"
    write_whole(path, json.dumps(content, indent=1) + "\n")
    return TuneReport(path, best, done, default_speed, best_speed, interrupted)


def _choices() -> str:
    """What tells one SPACE from another: Optuna goes on with no study whose parameters had other choices."""
    return hashlib.sha256(json.dumps(dict(SPACE)).encode()).hexdigest()[:8]


def _study(journal: Path, name: str, default: Tuning) -> Any:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise TunerMissingError() from error
    _check_journal(journal)
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(journal))),
        sampler=optuna.samplers.TPESampler(seed=0),
        load_if_exists=True,
    )
    if not study.trials:
        study.enqueue_trial(default.to_json())
    return study


def _check_journal(path: Path) -> None:
    """Raises BadTuningRecord for what is no journal of Optuna's, which would append to anything."""
    if not os.path.lexists(path):
        return
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True)]
    except (OSError, ValueError, RecursionError) as error:
        raise BadTuningRecord(path=path, reason=f"it is no journal of a search: {error}") from error
    if not all(isinstance(line, dict) and type(line.get("op_code")) is int for line in lines):
        raise BadTuningRecord(path=path, reason="it is no journal of a search")


def _search(
    study: Any, bench: _Bench, seconds: float, trials: int | None, progress: Progress, tell: Callable[[str], None]
) -> tuple[int, bool]:
    """Trials done here, and whether Ctrl-C ended them."""
    deadline, done, best = time.monotonic() + seconds, 0, math.inf
    progress.stage("searching", trials)
    try:
        while (trials is None or done < trials) and (time.monotonic() < deadline or not done):
            trial = study.ask()
            chosen = Tuning(**{name: trial.suggest_categorical(name, values) for name, values in SPACE.items()})
            before, speed, after = map(bench.measure, (bench.level.tuning, chosen, bench.level.tuning))
            default = before.best(after)
            score = speed.score(default)
            study.tell(trial, score)
            done += 1
            progress.advance(1)
            if score < best:
                best = score
                prefill, decode = speed.prefill / default.prefill - 1, speed.decode / default.decode - 1
                tell(f"trial {trial.number}: prefill {prefill:+.1%}, decode {decode:+.1%}, {chosen}")
    except KeyboardInterrupt:
        if not any(trial.value is not None for trial in study.trials):
            raise
        return done, True
    return done, False


def _compare(bench: _Bench, default: Tuning, best: Tuning, progress: Progress) -> tuple[Speed, Speed]:
    """Both in turn, so that a drift of the machine meets both; medians."""
    rounds = []
    for _ in range(FINAL_ROUNDS):
        rounds.append((bench.measure(default), bench.measure(best)))
        progress.advance(1)

    def median(side: int) -> Speed:
        prefill, decode = ([getattr(pair[side], part) for pair in rounds] for part in ("prefill", "decode"))
        return Speed(statistics.median(prefill), statistics.median(decode))

    return median(0), median(1)


@dataclass
class _Bench:
    """One artifact whose kernels are exchanged; libraries are kept by what they were built from."""

    folder: Path
    level: IsaLevel
    quant: str
    planned: Planned

    def __post_init__(self) -> None:
        self._built: dict[Tuning, Path] = {}

    def measure(self, tuning: Tuning) -> Speed:
        """Medians of prefill and decode with the kernels of `tuning`."""
        import numpy as np

        from dsv3c import runtime

        with runtime.load(self._library(tuning), context=PROMPT_TOKENS + NEW_TOKENS + 1) as model:
            known = min(256, int(model.config["vocab_size"]))
            ids = np.random.default_rng(0).integers(0, known, PROMPT_TOKENS).tolist()
            model.generate(ids, max_new_tokens=2, temperature=0, ignore_eos=True)  # touches all weights once
            runs = [
                model.generate(ids, max_new_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
                for _ in range(REPETITIONS)
            ]
        prefill = statistics.median(run.prompt_tokens_per_second for run in runs)
        return Speed(prefill, statistics.median(run.decode_tokens_per_second for run in runs))

    def _library(self, tuning: Tuning) -> Path:
        """An artifact with the kernels of `tuning`; its weights are links to the first one's."""
        if tuning not in self._built:
            number = len(self._built)
            out = self.folder.parent / f"trial-{number}"
            shutil.copytree(self.folder, out, copy_function=os.link, ignore=shutil.ignore_patterns("kernels"))
            emission = emit(self.planned, [self.level.tuned(tuning)])
            emission.write_kernels_for(out / "plan.json", out / "kernels", lambda n: None)
            _set_kernels(out, [dict(level) for level in emission.levels])
            self._built[tuning] = out
        return self._built[tuning]


def _set_kernels(folder: Path, levels: list[dict[str, Any]]) -> None:
    """Make the manifest of a trial name its own kernels; a new file, since the old one is a link."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: entry for name, entry in manifest["files"].items() if not name.startswith("kernels/")}
    kernels = {f"kernels/{name}": entry for name, entry in artifact.file_table(folder / "kernels").items()}
    manifest["target"]["levels"] = levels
    manifest["files"] = kept | kernels
    path.unlink()
    artifact.write_json(path, manifest)


@contextmanager
def _bench(model: Path, options: CompileOptions, progress: Progress) -> Iterator[_Bench]:
    """An artifact, or a checkpoint compiled once, in a temporary folder."""
    again = is_artifact(model)
    options = options_of(model) if again else options
    target = _tunable(model, options)
    with _scratch(model.resolve() if again else None) as scratch:
        base = scratch / "base"
        if again:
            planned = planned_again(model, options, target)
            shutil.copytree(model, base, copy_function=os.link, ignore=shutil.ignore_patterns("kernels"))
        else:
            compile_checkpoint(model, base, options, progress)
            if options.quant == AUTO or options.quant_plan is not None:
                options = options_of(base)  # which has the formats that were settled
            source = Checkpoint.open(model, options.lora)
            options = settled(options, source, target)
            lowered = lower(source.config, source.shapes, options, target)
            planned = plan(lowered.entries, lowered.bounds)
        yield _Bench(base, best_level(target), options.quant, planned)


@contextmanager
def _scratch(artifact: Path | None) -> Iterator[Path]:
    """A temporary folder: beside an artifact, whose weights are linked to; anywhere for a checkpoint."""
    if artifact is None:
        with tempfile.TemporaryDirectory(prefix="dsv3c-tune-") as temporary:
            yield Path(temporary)
        return
    with workplace(artifact) as folder:
        (folder / MAKING).mkdir()
        yield folder / MAKING


def is_artifact(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def options_of(folder: Path) -> CompileOptions:
    """The options an artifact was compiled with. Raises RuntimeFault for a broken artifact, NotTunableError for one
    without options that are known, BadOptionError for a value out of range."""
    manifest = Artifact.open(folder).manifest.content
    stored, quantization = manifest.get("options"), manifest.get("quantization")
    if not isinstance(stored, dict) or not all(_is_option(*item) for item in stored.items()):
        raise NotTunableError(path=folder, reason="its manifest.json has no options that this version of dsv3c knows")
    formats = quantization.get("formats", {}) if isinstance(quantization, dict) else {}
    if not isinstance(formats, dict) or not all(isinstance(format, str) for format in formats.values()):
        raise NotTunableError(path=folder, reason="its manifest.json has formats of weights that are none")
    return CompileOptions(**{**stored, "emit": (), "lora": (), "formats": formats})


def _is_option(name: str, value: object) -> bool:
    default = CompileOptions().to_dict().get(name, ...)
    if name in ("target_bpw", "max_size"):
        return value is None or type(value) in (int, float)
    if default is None or isinstance(default, str):
        return isinstance(value, str) or value is default
    return name == "emit" or type(value) is type(default)


def planned_again(folder: Path, options: CompileOptions, target: Target) -> Planned:
    """The plan that an artifact was made from, made again from its config.

    Raises NotTunableError unless they give the artifact's plan, RuntimeFault for a broken artifact.
    """
    opened = Artifact.open(folder)
    config = ModelConfig.from_stored(opened.manifest.model)
    own = {name: shape for name, shape in optional_tensors(config).items() if name in opened.tensors}
    lowered = lower(config, required_tensors(config) | own, options, target)
    planned = plan(lowered.entries, lowered.bounds)
    if (opened.plan.buffers, opened.plan.entries) != (planned.buffers, planned.entries):
        raise NotTunableError(path=folder, reason="this version of dsv3c makes another plan of its model")
    return planned


def best_level(target: TunableTarget) -> IsaLevel:
    """The highest of the target's levels that this CPU has. Raises NotTunableError without one."""
    flags = cpu_flags()
    levels = [level for level in target.levels() if not level.missing(flags) and permitted(level.requires)]
    if not levels:
        raise NotTunableError(path=target.name, reason="this CPU runs none of the target's kernels")
    return levels[-1]


def _tunable(model: Path, options: CompileOptions) -> TunableTarget:
    target = targets.configured(options.target)
    if not isinstance(target, TunableTarget):
        raise NotTunableError(path=model, reason=f"kernels of the target {target.name} have no numbers to search")
    return target
