"""What of options does not fit together, or is not there for a target: told before any long work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dsv3c import targets
from dsv3c.compiler.checkpoint.sides import side_folder
from dsv3c.compiler.core.target import CachingTarget, Emission, Target
from dsv3c.compiler.errors import BadOptionError, FormatRefusedError, UnknownFormError
from dsv3c.compiler.formats import rows
from dsv3c.compiler.formats.table import FORMATS, WeightFormat, listed
from dsv3c.compiler.options import CompileOptions
from dsv3c.compiler.quantisation import choice
from dsv3c.passes.quantise import MATRIX_OPERANDS


def check_apart(out: Path, options: CompileOptions) -> None:
    """Raises BadOptionError for what would be written into the place of the artifact, and is none of it."""
    for name in ("dump_to", "cache_dir"):
        folder: Path | None = getattr(options, name)
        if folder is not None and folder.resolve().is_relative_to(out.resolve()):
            raise BadOptionError(option=name, value=str(folder), expected=f"a folder outside of the artifact {out}")


def caching(target: Target, options: CompileOptions) -> Target:
    """The target with the cache of kernels that is asked for, if one is. Raises BadOptionError for a target that has
    none, and a Dsv3cError for a folder that cannot be written."""
    if options.cache_dir is None:
        return target
    if not isinstance(target, CachingTarget):
        expected = f"none for the target {target.name}, whose kernels are compiled each time"
        raise BadOptionError(option="cache_dir", value=str(options.cache_dir), expected=expected)
    return target.caching(options.cache_dir)


def check_supported(options: CompileOptions, target: Target) -> None:
    """Raises FormatRefusedError for weights in a format that the target has no kernels for."""
    head, embedding = options.resolved_head_quant, options.resolved_embed_quant
    for name, operations in ((options.resolved_quant, MATRIX_OPERANDS), (head, ("linear",)), (embedding, ("take",))):
        format = WeightFormat.parse(name)
        if not supports(target, format, operations):
            known = listed([each.name for each in FORMATS.values() if supports(target, each, operations)])
            others = [each for each in targets.available() if supports(targets.get(each), format, operations)]
            raise FormatRefusedError(
                format=name, target=target.name, known=known, others=", ".join(others) or "no target yet"
            )


def supports(target: Target, format: WeightFormat, operations: Iterable[str]) -> bool:
    return all(target.supports(format, op) for op in operations)


def check_method(options: CompileOptions) -> None:
    """Raises BadOptionError for a method that is none, and for one that there is nothing to round by."""
    known = choice.method_names()
    if options.method is not None and options.method not in known:
        raise BadOptionError(option="method", value=options.method, expected=f"one of {', '.join(known)}")
    formats = (options.resolved_quant, options.resolved_head_quant)
    if options.quant_plan is not None or any(WeightFormat.parse(name).has_codes for name in formats):
        return
    if options.sparsity_threshold:
        expected = f"0 for weights in {options.quant}, which are numbers and no codes"
        raise BadOptionError(option="sparsity_threshold", value=options.sparsity_threshold, expected=expected)
    for name in ("method", "calibration"):
        if getattr(options, name) not in (None, choice.NEAREST):
            expected = f"none for weights in {options.quant}, which are numbers and no codes"
            raise BadOptionError(option=name, value=str(getattr(options, name)), expected=expected)


def check_formats(options: CompileOptions) -> None:
    """Raises UnknownWeightFormat for a format name that is none, BadOptionError for one that embeddings cannot have."""
    for name in (options.resolved_quant, options.resolved_head_quant):
        WeightFormat.parse(name)
    known = rows.format_names()
    if options.resolved_embed_quant not in known:
        expected = "one of " + ", ".join(known)
        raise BadOptionError(option="embed_quant", value=options.resolved_embed_quant, expected=expected)


def check_extras(options: CompileOptions, emission: Emission, checkpoint: Path) -> None:
    for name in options.emit:
        if name not in emission.extras:
            known = ", ".join(emission.extras) or "none"
            raise UnknownFormError(name=name, target=options.target, known=known)
    checks = [emission.checks[name] for name in options.emit if name in emission.checks]
    if not checks:
        return
    with side_folder(checkpoint) as folder:
        for check in checks:
            check(folder)


def choose_cache_dtype(options: CompileOptions, target: Target) -> str:
    """The element type of latent rows. Raises BadOptionError for one asked for that the target does not have."""
    wanted = options.resolved_cache_dtype
    if wanted in target.cache_dtypes:
        return wanted
    if options.cache_dtype is None:
        return target.cache_dtypes[0]
    expected = f"{' or '.join(target.cache_dtypes)} for the target {options.target}"
    raise BadOptionError(option="cache_dtype", value=options.cache_dtype, expected=expected)
