"""What a user may choose: the compile options, and the debug ladder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dsv3c.compiler.errors import BadOptionError

PAGE_SIZE = 16
CACHE_DTYPES = ("f32", "f16", "bf16", "int8", "fp8")
MAX_BOUND = 1 << 16  # tokens, rows or sequences of one step
AUTO = "auto"  # for `quant`: the format of each weight is chosen by what it costs
_AUTO_REST = "int8"  # what goes with it where a format of its own is not chosen
CALIBRATION_TOKENS = 1 << 15
LEAST_CALIBRATION_TOKENS = 1 << 10
MAX_SPARSITY_THRESHOLD = 4.0  # of a group's root mean square: hardly a weight reaches that


def debug_level() -> int:
    """DSV3C_DEBUG: 1 passes, times and tracebacks; 2 rewrites and nearest misses; 3 the IR; 4 generated source."""
    text = os.environ.get("DSV3C_DEBUG", "0") or "0"
    if text not in ("0", "1", "2", "3", "4"):
        raise BadOptionError(option="DSV3C_DEBUG", value=text, expected="a number from 0 to 4")
    return int(text)


@dataclass(frozen=True)
class Lora:
    """The folder of an adapter that is merged, and how many times what it says. As text, `NAME` or `NAME=SCALE`."""

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise BadOptionError(option="lora", value=self.scale, expected="a finite number for the scale")

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def __str__(self) -> str:
        return self.name if self.scale == 1 else f"{self.name}={self.scale:g}"


@dataclass(frozen=True)
class CompileOptions:
    """Options of one compilation.

    target: `x86`, `x86:key=value,…`. quant, head_quant, embed_quant: weight formats by name (see formats.table) for
    the linear weights, the language model head, the embedding; None takes the default that goes with `quant`. `quant`
    may be "auto": then target_bpw, bits for each linear weight, or max_size, bytes of the weights file, is the budget.
    quant_plan: a file with the formats of single weights. formats: what came of either, by the names of weights.
    kept: formats that keep the codes of a checkpoint that is quantised, by the names of its tensors, before `quant`;
    None takes all that the target has.
    cache_dtype: f32, f16, bf16, int8 or fp8, as far as the target has it.
    max_tokens, max_rows, max_sequences: bounds of one step.
    method: how weights become codes (quantisation.choice), None for the default.
    calibration: a text that weights are rounded for and formats measured on, of which at most calibration_tokens count;
    None: where one is wanted, ours.
    lora: adapters that are merged into the weights, in their order, before anything else is done with these.
    sparsity_threshold: weights below that part of the root mean square of their group become 0 before they are rounded.
    cache_dir: folder that compiled kernels are taken from and kept in; it changes no byte of the artifact.
    stop_after: name of the pass to stop at. dump_to: folder for the graph after each pass.
    overwrite: replace an existing artifact. restart: discard what an interrupted run with other options left.
    emit: further forms of the artifact to write beside it, by the names that the target gives them.
    measure: a text on which the artifact is measured. measure_against: the artifact or checkpoint it is compared with.
    """

    target: str = "x86"
    quant: str = "int8"
    head_quant: str | None = None
    embed_quant: str | None = None
    cache_dtype: str | None = None
    max_tokens: int = 512
    max_rows: int = 64
    max_sequences: int = 8
    method: str | None = None
    calibration: Path | None = None
    calibration_tokens: int = CALIBRATION_TOKENS
    lora: tuple[Lora, ...] = ()
    sparsity_threshold: float = 0.0
    stop_after: str | None = None
    dump_to: Path | None = None
    overwrite: bool = False
    restart: bool = False
    emit: tuple[str, ...] = ()
    cache_dir: Path | None = None
    measure: Path | None = None
    measure_against: Path | None = None
    kept: Mapping[str, str] | None = field(default_factory=dict, hash=False)
    quant_plan: Path | None = None
    target_bpw: float | None = None
    max_size: int | None = None
    formats: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_rows", "max_sequences"):
            if not 1 <= getattr(self, name) <= MAX_BOUND:
                expected = f"a number from 1 to {MAX_BOUND}"
                raise BadOptionError(option=name, value=getattr(self, name), expected=expected)
        if self.cache_dtype not in (None, *CACHE_DTYPES):
            expected = f"{', '.join(CACHE_DTYPES[:-1])} or {CACHE_DTYPES[-1]}"
            raise BadOptionError(option="cache_dtype", value=self.cache_dtype, expected=expected)
        if self.calibration_tokens < LEAST_CALIBRATION_TOKENS:
            expected = f"{LEAST_CALIBRATION_TOKENS} or more"
            raise BadOptionError(option="calibration_tokens", value=self.calibration_tokens, expected=expected)
        if not 0 <= self.sparsity_threshold <= MAX_SPARSITY_THRESHOLD:
            expected = f"a number from 0 to {MAX_SPARSITY_THRESHOLD}"
            raise BadOptionError(option="sparsity_threshold", value=self.sparsity_threshold, expected=expected)
        if self.measure_against is not None and self.measure is None:
            given, expected = str(self.measure_against), "none where there is no text to measure"
            raise BadOptionError(option="measure_against", value=given, expected=expected)
        self._check_budget()

    def _check_budget(self) -> None:
        given = {"target_bpw": self.target_bpw, "max_size": self.max_size}
        budgets = {name: value for name, value in given.items() if value is not None}
        wrong = next((name for name, value in budgets.items() if not (value > 0 and math.isfinite(value))), None)
        if wrong is not None:
            raise BadOptionError(option=wrong, value=budgets[wrong], expected="a number above 0")
        if self.quant == AUTO and len(budgets) != 1:
            raise BadOptionError(option="quant", value=AUTO, expected="one budget with it: target_bpw or max_size")
        if self.quant != AUTO and budgets:
            raise BadOptionError(option="quant", value=self.quant, expected=f"{AUTO}, as {', '.join(budgets)} is given")
        if self.quant == AUTO and self.quant_plan is not None:
            raise BadOptionError(option="quant", value=AUTO, expected="a format: a plan says what auto would choose")

    @property
    def resolved_quant(self) -> str:
        """The format of linear weights that have none of their own in `formats`."""
        return _AUTO_REST if self.quant == AUTO else self.quant

    @property
    def resolved_method(self) -> str:
        return self.method or ("rtn" if self.calibration is None else "auto")

    @property
    def resolved_head_quant(self) -> str:
        """More bits where the body has few: the head's error goes straight into the logits."""
        from dsv3c.compiler.formats.table import WeightFormat  # takes numpy, which help comes without

        return self.head_quant or WeightFormat.parse(self.resolved_quant).head or self.resolved_quant

    @property
    def resolved_embed_quant(self) -> str:
        from dsv3c.compiler.formats.table import WeightFormat

        return self.embed_quant or WeightFormat.parse(self.resolved_quant).embedding or self.resolved_quant

    @property
    def resolved_cache_dtype(self) -> str:
        return self.cache_dtype or ("f32" if self.quant == "float32" else "bf16")

    def to_dict(self) -> dict[str, object]:
        """What goes into the manifest: every option that changes the artifact."""
        kept = asdict(self)
        transient = ("cache_dir", "stop_after", "dump_to", "overwrite", "restart", "measure", "measure_against")
        for name in (*transient, "formats"):  # formats are a part of the quantisation
            del kept[name]
        for name in ("calibration", "quant_plan"):
            kept[name] = kept[name] and kept[name].name
        kept["lora"] = [str(adapter) for adapter in self.lora]
        return kept
