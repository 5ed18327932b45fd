"""A table of weight formats and methods of one checkpoint: what each weighs, and how far it is from float32."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dsv3c.runtime
from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core.target import Target
from dsv3c.compiler.driver import checks, measuring, pipeline
from dsv3c.compiler.driver.workplace import scratch, write_whole
from dsv3c.compiler.errors import Dsv3cError, SweepDiffersError, SweepFileError
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.options import CompileOptions, Lora
from dsv3c.compiler.quantisation.choice import NEAREST
from dsv3c.runtime.artifact.artifact import WEIGHTS
from dsv3c.runtime.artifact.jsonfile import read_json
from dsv3c.runtime.devices.device import Placement
from dsv3c.runtime.errors import RuntimeFault
from dsv3c.runtime.measure.quality import evaluate
from dsv3c.runtime.measure.windows import DEFAULT_CONTEXT, Settings
from dsv3c.runtime.progress import Progress, Silent

# What people choose among, by size: one of each width, and those that checkpoints come in.
USUAL = (
    *("bfloat16", "fp8", "int8", "int6-g32", "int5-g32", "int4-g32-asym", "int4-g32", "int4-g64", "int4-g128"),
    *("nf4-g64", "mxfp4", "int3-g32", "int2-g16"),
)
LINEAR_PARTS = ("attention", "dense mlp", "routed experts", "shared experts")
_LIMIT = 16 << 20
_MARK = "dsv3c_sweep"  # the key by which a table is known; its value is the version of the format
_VERSION = 1


@dataclass(frozen=True)
class Chosen:
    """The rows, and how they are made. formats: None for USUAL, those that the target has. methods: formats without
    codes have rounding to nearest alone. calibration: the text for methods that take one, None for the compiler's own.
    lora: adapters that are merged into all of them, and into what they are compared with.
    """

    formats: tuple[str, ...] | None = None
    methods: tuple[str, ...] = (NEAREST,)
    calibration: Path | None = None
    lora: tuple[Lora, ...] = ()
    threads: int | None = None
    keep: Path | None = None


@dataclass(frozen=True)
class Row:
    """One format by one method. made: what it was made with; bits_per_weight: of the linear weights, scales included;
    weights_bytes: of the whole file; texts: as `Quality.to_dict` has them, against float32."""

    format: str
    method: str
    made: Mapping[str, Any]
    bits_per_weight: float
    weights_bytes: int
    compile_seconds: float
    device: str
    texts: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        return self.format if self.method == NEAREST else f"{self.format} {self.method}"

    @property
    def told(self) -> str:
        kl = ", ".join(f"KL {text['against']['kl']:.3g} on {text['text']}" for text in self.texts)
        return f"{self.bits_per_weight:.2f} bits a weight, {kl}"


@dataclass(frozen=True)
class Table:
    """measured: what all rows have in common: the checkpoint's files, the texts, how they are counted."""

    model: str
    measured: Mapping[str, Any]
    rows: tuple[Row, ...]

    def with_row(self, row: Row) -> Table:
        """In the place of one of the same format and method, if there is one; larger ones first."""
        others = [other for other in self.rows if (other.format, other.method) != (row.format, row.method)]
        return replace(self, rows=tuple(sorted([*others, row], key=lambda each: -each.bits_per_weight)))

    def to_dict(self) -> dict[str, Any]:
        rows = [asdict(row) for row in self.rows]
        return {_MARK: _VERSION, "model": self.model, "measured": dict(self.measured), "rows": rows}

    def write(self, path: Path) -> None:
        write_whole(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")

    @staticmethod
    def read(path: Path) -> Table:
        """Raises SweepFileError for a file that is none of these tables."""
        try:
            content = read_json(path, _LIMIT)
            if not isinstance(content, dict) or content.get(_MARK) != _VERSION:
                raise SweepFileError(path=path, reason="it is something else")
            rows = tuple(_row(row) for row in content["rows"])
            return Table(str(content["model"]), dict(content["measured"]), rows)
        except RuntimeFault as fault:
            raise SweepFileError(path=path, reason=str(fault).partition("\n")[0]) from fault
        except (KeyError, TypeError, ValueError) as error:
            raise SweepFileError(path=path, reason=f"it is damaged ({type(error).__name__}: {error})") from error


def _row(content: Any) -> Row:
    row = Row(**{**content, "texts": tuple(content["texts"])})
    numbers = (row.bits_per_weight, row.weights_bytes, row.compile_seconds)
    if not all(isinstance(number, int | float) for number in numbers) or not row.told:
        raise TypeError("a row of other fields")
    return row


@dataclass(frozen=True)
class Sweep:
    """A checkpoint, texts, how they are counted, the target string, and for each row the options to compile with.

    calibration: the sha256 of the text that weights are rounded for, where any are.
    """

    checkpoint: Path
    texts: tuple[Path, ...]
    settings: Settings
    chosen: Chosen
    target: str
    measured: Mapping[str, Any]
    options: Mapping[tuple[str, str], CompileOptions]
    calibration: str | None = None

    @staticmethod
    def of(checkpoint: Path, texts: Many[Path], settings: Settings, chosen: Chosen) -> Sweep:
        """Checks all before any work. Raises what reading the checkpoint and the texts raises, NoLocalTargetError,
        UnknownWeightFormat, FormatRefusedError, BadOptionError for a method that is none."""
        target = measuring.local_target()
        options = _rows(target, chosen)
        for each in options.values():
            checks.check_formats(each)
            checks.check_supported(each, _target(target))
            checks.check_method(each)
        source = Checkpoint.open(checkpoint, chosen.lora)
        longest = min(DEFAULT_CONTEXT, source.config.max_position_embeddings)
        settings = replace(settings, context=settings.context or longest)
        read = measuring.check_texts(checkpoint, texts, settings)
        taking = next((each for each in options.values() if pipeline.takes_text(each)), None)
        calibration = None if taking is None else pipeline.read_calibration(checkpoint, taking)
        measured = {
            "source": source.file_hashes(),
            "texts": [{"text": text.name, "sha256": text.sha256} for text in read],
            **asdict(settings),
        }
        sha256 = None if calibration is None else calibration.sha256
        return Sweep(checkpoint, tuple(texts), settings, chosen, target, measured, options, sha256)

    def resumed(self, path: Path | None) -> Table:
        """What the file has already, if it is there. Raises SweepFileError, and SweepDiffersError for figures of other
        texts or another checkpoint."""
        if path is None or not path.exists():
            return Table(self.checkpoint.resolve().name, self.measured, ())
        table = Table.read(path)
        names = {"source": "another checkpoint", "texts": "other texts"}
        differing = [name for name, value in self.measured.items() if table.measured.get(name) != value]
        if differing:
            raise SweepDiffersError(path=path, what=names.get(differing[0], f"another --{differing[0]}"))
        return table

    def missing(self, table: Table, progress: Progress | None = None) -> Iterator[Row]:
        """Compile and measure what the table does not have, one row after another."""
        done = {(row.format, row.method) for row in table.rows if row.made == self._made(row.format, row.method)}
        left = [key for key in self.options if key not in done]
        if not left:
            return
        told = progress or Silent()
        with ExitStack() as stack:
            folder = stack.enter_context(self._place())
            baseline = CompileOptions(
                target=self.target, quant=measuring.REFERENCE, lora=self.chosen.lora, overwrite=True
            )
            pipeline.compile_checkpoint(self.checkpoint, folder / measuring.REFERENCE, baseline, told)
            for key in left:
                yield self._measured(folder, key, told)

    def _measured(self, folder: Path, key: tuple[str, str], progress: Progress) -> Row:
        format, method = key
        reference = folder / measuring.REFERENCE
        with self._artifact(folder / f"{format}-{method}") as out:
            report = pipeline.compile_checkpoint(self.checkpoint, out, self.options[key], progress)
            placement = Placement(threads=self.chosen.threads)
            found = evaluate(out, self.texts, self.settings, placement, reference, progress, measuring.REFERENCE)
            weights_bytes = (out / WEIGHTS).stat().st_size
        figures = tuple(quality.to_dict() for quality in found.texts)
        bits, seconds = bits_per_weight(report.manifest), round(report.seconds, 1)
        return Row(format, method, self._made(format, method), bits, weights_bytes, seconds, found.device, figures)

    def _made(self, format: str, method: str) -> dict[str, Any]:
        made: dict[str, Any] = {"dsv3c_version": dsv3c.runtime.__version__}
        options = self.options.get((format, method))
        if options is None:
            return made
        text = self.calibration if pipeline.takes_text(options) else None
        return made | {"options": json.loads(json.dumps(options.to_dict())), "calibration_sha256": text}

    @contextmanager
    def _place(self) -> Iterator[Path]:
        if self.chosen.keep is not None:
            yield self.chosen.keep
            return
        with scratch("dsv3c-sweep") as folder:
            yield folder

    @contextmanager
    def _artifact(self, out: Path) -> Iterator[Path]:
        """A place for one artifact, which is removed in the end unless they are kept: all together may be large."""
        if self.chosen.keep is not None:
            yield out
            return
        with tempfile.TemporaryDirectory(prefix=f"{out.name}-", dir=out.parent) as folder:
            yield Path(folder) / out.name


def _rows(target: str, chosen: Chosen) -> dict[tuple[str, str], CompileOptions]:
    """For each format and method what it is compiled with."""
    rows = {}
    for format in chosen.formats or _usual_formats(target):
        methods = chosen.methods if WeightFormat.parse(format).has_codes else (NEAREST,)
        for method in methods:
            text = None if method == NEAREST else chosen.calibration
            rows[format, method] = CompileOptions(
                target=target, quant=format, method=method, calibration=text, lora=chosen.lora, overwrite=True
            )
    return rows


def bits_per_weight(manifest: Mapping[str, Any]) -> float:
    """Of the linear weights of an artifact, scales and padding included, head and router left out."""
    parts = [part for name, part in manifest["weights"]["parts"].items() if name in LINEAR_PARTS]
    nbytes, weights = (sum(int(part[key]) for part in parts) for key in ("nbytes", "weights"))
    return 8 * nbytes / weights


def _usual_formats(target: str) -> tuple[str, ...]:
    """Those that the target has kernels for."""
    return tuple(name for name in USUAL if _has(target, name))


def _has(target: str, format: str) -> bool:
    try:
        checks.check_supported(CompileOptions(quant=format), _target(target))
    except Dsv3cError:
        return False
    return True


def _target(target: str) -> Target:
    configured: Target = targets.configured(target)
    return configured
