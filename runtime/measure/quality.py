"""How well an artifact predicts a text, and how far its predictions are from those of another one.

Both models read the text side by side, in steps as large as the rows of logits allow: the logits of one step are all
that is kept of any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.devices.device import GPU_FAMILIES, Floats, Placement, family_of
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.session import Ints, Request
from dsv3c.runtime.errors import LogitsNotFinite, VocabulariesDiffer
from dsv3c.runtime.measure.divergence import Divergence, Estimate, Scores
from dsv3c.runtime.measure.windows import DEFAULT_CONTEXT, Settings, Text, Window, beginning, cut, read_text
from dsv3c.runtime.model import Model, Serving
from dsv3c.runtime.progress import Progress, Silent


@dataclass(frozen=True)
class Quality:
    """What was found on one text: `tokens` were predicted, in so many windows. divergence: from the reference."""

    text: str
    sha256: str
    tokens: int
    windows: int
    nll: Estimate
    divergence: Divergence | None

    @property
    def perplexity(self) -> Estimate:
        return self.nll.exp()

    def to_dict(self) -> dict[str, Any]:
        """For JSON: an estimate is its value, its standard error stands beside it; None for what is infinite."""
        kept = {"text": self.text, "sha256": self.sha256, "tokens": self.tokens, "windows": self.windows}
        kept |= _flat({"nll": asdict(self.nll), "perplexity": asdict(self.perplexity)})
        return kept if self.divergence is None else kept | {"against": _flat(asdict(self.divergence))}


@dataclass(frozen=True)
class Report:
    """An artifact on texts. device: what it ran on, and its kernel level: other kernels round activations otherwise.
    context: tokens of a window. against: the name of the reference, if there was one."""

    device: str
    context: int
    settings: Settings
    against: str | None
    texts: tuple[Quality, ...]

    def to_dict(self) -> dict[str, Any]:
        settings = {"device": self.device, "context": self.context, "bos": self.settings.bos}
        return settings | {"against": self.against, "texts": [quality.to_dict() for quality in self.texts]}


def evaluate(
    out: Path,
    texts: Many[Path],
    settings: Settings,
    placement: Placement,
    against: Path | None = None,
    progress: Progress | None = None,
    against_name: str | None = None,
) -> Report:
    """Measure the artifact `out` on texts, also against the artifact `against`, which `against_name` stands for.

    placement: of `out`; the other takes of it what its kind of device knows. Raises TextFileInvalid, TextTooShort,
    VocabulariesDiffer, ParameterInvalid, LogitsNotFinite, and what loading raises.
    """
    read = [read_text(path) for path in texts]
    artifacts = [Artifact.open(path) for path in (out, *([] if against is None else [against]))]
    _require_same_vocabulary(artifacts)
    context = settings.context or min(DEFAULT_CONTEXT, *(artifact.plan.context for artifact in artifacts))
    with ExitStack() as stack:
        placements = (placement, *(_fitting(artifact, placement) for artifact in artifacts[1:]))
        models = [
            stack.enter_context(Model.load(artifact, place, Serving(context, prefix_cache=False)))
            for artifact, place in zip(artifacts, placements, strict=True)
        ]
        device = _device(models[0].report())
        cuts = [_windows(models, text, context, settings) for text in read]  # before the long work
        found = [measure(models, text, part, progress) for text, part in zip(read, cuts, strict=True)]
    name = None if against is None else against_name or str(against)
    return Report(device, context, settings, name, tuple(found))


def measure(models: Many[Model], text: Text, windows: Many[Window], progress: Progress | None = None) -> Quality:
    """The first model on the windows of a text, against the second if there are two. Raises LogitsNotFinite."""
    told, count = progress or Silent(), sum(window.counted for window in windows)
    told.stage(f"predicting {text.name}", count)
    scores = Scores(count, compared=len(models) > 1)
    for window in windows:
        for rows, logits in _steps(models, window.tokens):
            skipped = min(rows.stop - rows.start, max(0, window.first - rows.start))
            parts = [_finite(part[skipped:], model) for part, model in zip(logits, models, strict=True)]
            targets = window.targets[rows][skipped:]
            scores.add(targets, parts[0], parts[1] if len(parts) > 1 else None)
            told.advance(targets.size)
    divergence = scores.divergence() if len(models) > 1 else None
    return Quality(text.name, text.sha256, count, len(windows), scores.nll, divergence)


def _steps(models: Many[Model], tokens: Ints) -> Iterator[tuple[slice, list[Floats]]]:
    """Which of the tokens a step read, and their logits by each model; steps are the same for all models."""
    size = min(bound for model in models for bound in (model.session.plan.bounds.T, model.session.plan.bounds.R))
    with ExitStack() as stack:
        sequences = [stack.enter_context(closing(model.new_sequence())) for model in models]
        for start in range(0, tokens.size, size):
            rows = slice(start, min(start + size, tokens.size))
            yield rows, [_read(*each, tokens[rows]) for each in zip(models, sequences, strict=True)]


def _device(report: Mapping[str, Any]) -> str:
    return " ".join(str(report[name]) for name in ("device", "level") if name in report)


def _read(model: Model, sequence: Sequence, tokens: Ints) -> Floats:
    (logits,) = model.session.run([Request(sequence, tokens, "all")])
    return logits


def _finite(logits: Floats, model: Model) -> Floats:
    wrong = logits[~np.isfinite(logits)]
    if wrong.size:
        raise LogitsNotFinite(value=f"{wrong[0]}, by {model.artifact.folder}")
    return logits


def _windows(models: Many[Model], text: Text, context: int, settings: Settings) -> list[Window]:
    """By the first model's tokenizer. Raises VocabulariesDiffer when another one has other tokens for the text."""
    first, *others = models
    tokens = first.session.tokens(first.tokenizer.encode_plain(text.content))
    begin = first.session.tokens(beginning(first.tokenizer))
    for other in others:
        if not other.has_tokenizer:
            continue
        theirs = other.tokenizer.encode_plain(text.content), beginning(other.tokenizer)
        if not (np.array_equal(tokens, theirs[0]) and np.array_equal(begin, theirs[1])):
            raise _differ([first.artifact, other.artifact], f"their tokenizers have other tokens for {text.name}")
    return cut(text, begin, tokens, context, settings)


def _require_same_vocabulary(artifacts: Many[Artifact]) -> None:
    sizes = [artifact.manifest.vocab_size for artifact in artifacts]
    if len(set(sizes)) > 1:
        raise _differ(artifacts, f"{sizes[0]} tokens against {sizes[1]}")


def _differ(artifacts: Many[Artifact], reason: str) -> VocabulariesDiffer:
    return VocabulariesDiffer(path=artifacts[0].folder, other=artifacts[1].folder, reason=reason)


def _fitting(artifact: Artifact, placement: Placement) -> Placement:
    """What of a placement the artifact's kind of device takes: GPUs know no threads, others no choice of a device."""
    if family_of(artifact) in GPU_FAMILIES:
        return Placement(device=placement.device)
    return Placement(threads=placement.threads, numa=placement.numa)


def _flat(figures: dict[str, Any]) -> dict[str, float | None]:
    """{"kl": {"value": 1, "error": 2}} as {"kl": 1, "kl_error": 2}."""
    found: dict[str, float | None] = {}
    for name, figure in figures.items():
        single = not isinstance(figure, dict)
        parts = {name: figure} if single else {name: figure["value"], f"{name}_error": figure["error"]}
        found |= {key: value if math.isfinite(value) else None for key, value in parts.items()}
    return found
