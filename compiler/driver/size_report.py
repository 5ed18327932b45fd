"""What a model will weigh when compiled, told without reading a weight or building a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.files import file_size
from dsv3c.compiler.core.target import Target
from dsv3c.compiler.driver import (
    calibrated,
    checks,
    costs,
    kept,
    lowering,
    mixing,
    pipeline,
    text_files,
    time_cost,
    weights,
)
from dsv3c.compiler.driver.calibration_cost import CalibrationCost, cost
from dsv3c.compiler.driver.sizes import ModelPart, model_parts
from dsv3c.compiler.driver.time_cost import CompileTime
from dsv3c.compiler.errors import BadOptionError
from dsv3c.compiler.options import PAGE_SIZE, CompileOptions
from dsv3c.compiler.quantisation.quant_plan import QuantPlan
from dsv3c.runtime.devices.cpu import features as cpu_features
from dsv3c.runtime.devices.cpu.features import MACHINES
from dsv3c.runtime.measure import machine
from dsv3c.runtime.progress import Progress, Silent


@dataclass(frozen=True)
class PlanReport:
    """Sizes in bytes. parts: the weights, by part of the model. context: tokens that cache_bytes are for.

    calibration: what rounding by a text takes, None where no text is read. time: what compiling takes, about.
    available_bytes: memory of this machine that is free; 0 where the system does not tell, and for targets that run
    elsewhere: on a GPU, or on the CPU of another machine. quant_plan: where weights have formats of their own.
    """

    parts: Mapping[str, ModelPart]
    weight_bytes: int
    cache_bytes: int
    arena_bytes: int
    context: int
    available_bytes: int
    notes: tuple[str, ...]
    quant_plan: QuantPlan | None = None
    calibration: CalibrationCost | None = None
    time: CompileTime | None = None

    @property
    def total_bytes(self) -> int:
        """What running the model takes; the weights are mapped, so several processes share them."""
        return self.weight_bytes + self.cache_bytes + self.arena_bytes

    @property
    def fits(self) -> bool | None:
        """Whether the free memory is enough; None where that is not known."""
        return self.total_bytes <= self.available_bytes if self.available_bytes else None

    def to_dict(self) -> dict[str, Any]:
        took = self.time and asdict(self.time) | {"seconds": self.time.seconds}
        parts = {name: asdict(part) for name, part in self.parts.items()}
        plan = self.quant_plan and self.quant_plan.to_json()
        kept = {name: value for name, value in vars(self).items() if name not in ("parts", "quant_plan", "time")}
        derived = {"time": took, "total_bytes": self.total_bytes, "fits": self.fits}
        return kept | derived | {"parts": parts, "quant_plan": plan}


def plan_checkpoint(
    checkpoint: Path,
    options: CompileOptions,
    context: int | None = None,
    progress: Progress | None = None,
    *,
    each_weight: bool = False,
    costing: costs.Measure = costs.measured,
) -> PlanReport:
    """The report for a checkpoint folder; `context` tokens are to be held at once, by default what the model allows.
    each_weight: the format of each weight too where all have the same. costing: by what formats are found for a budget.

    Raises Dsv3cError subclasses: for the checkpoint, the options, a context that is longer than the model allows.
    """
    target: Target = targets.configured(options.target)
    checks.check_formats(options)
    checks.check_supported(options, target)
    checks.check_method(options)
    source = Checkpoint.open(checkpoint, options.lora)
    notes = source.notes + text_files.check(checkpoint, source.config)
    config, options = source.config, pipeline.settled(options, source, target)
    longest = config.max_position_embeddings
    tokens = longest if context is None else context
    if not 1 <= tokens <= longest:
        raise BadOptionError(option="context", value=tokens, expected=f"1 to {longest}, the limit of the model")
    text = pipeline.read_calibration(checkpoint, options)
    options, quant_plan = pipeline.mixed(source, options, target, progress or Silent(), text, None, costing)
    if quant_plan is None and each_weight:
        quant_plan = mixing.described(lowering.float_graphs(config, source.shapes, options), options, target)
    lowered = lowering.lower(config, source.shapes, options, target)
    planned = target.plan(lowered.entries, lowered.bounds)
    notes += kept.notes(source, planned.recipes)
    file = weights.lay_out(planned.recipes)
    method = options.resolved_method
    slots = -(-tokens // PAGE_SIZE) * PAGE_SIZE
    return PlanReport(
        parts=model_parts(config, file),
        weight_bytes=file.nbytes,
        cache_bytes=slots * lowered.cache_bytes_per_token,
        arena_bytes=planned.arena_bytes,
        context=tokens,
        available_bytes=machine.memory().available if _runs_in_host_memory(target.name) else 0,
        notes=notes,
        quant_plan=quant_plan,
        calibration=None if text is None else cost(calibrated.plan(lowered.graphs), text, method, config),
        time=time_cost.estimate(planned, file, sum(map(file_size, source.weight_files.values())), method),
    )


def _runs_in_host_memory(target: str) -> bool:
    """Whether what is compiled for the target runs in this machine's memory."""
    return target == "onnx" or MACHINES.get(target) == cpu_features.machine()
