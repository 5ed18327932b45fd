"""Options of the commands that compile."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dsv3c import targets
from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.options import AUTO, CALIBRATION_TOKENS, LEAST_CALIBRATION_TOKENS, MAX_BOUND, MAX_SPARSITY_THRESHOLD
from dsv3c.runtime.cli.params import PATH, Finite

if TYPE_CHECKING:
    from dsv3c.compiler.options import CompileOptions, Lora

Command = TypeVar("Command", bound=Callable[..., Any])

# What people call the formats, beside the full names.
SHORT_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "nf4": "nf4-g64", "int2": "int2-g16"}
SHORT_NAMES |= {f"int{bits}": f"int{bits}-g32" for bits in (6, 5, 4, 3)}
# As the table of formats lists them, which takes numpy; help is to come at once.
FORMAT_HELP = (
    "float32, float16, bfloat16, fp8, int8, int8-asym, intB-tensor, intB-tensor-asym, intB-gG, intB-gG-asym, "
    "intB-channel, intB-channel-asym, mxfp4 or nf4-gG with B one of 8, 6, 5, 4, 3, 2 and G one of 16, 32, 64, 128"
)
_UNITS = {"": 1, "B": 1, **{f"{unit}B": 1000**power for power, unit in enumerate("KMGT", start=1)}}
_UNITS |= {f"{unit}IB": 1024**power for power, unit in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([kKmMgGtT]?[iI]?[bB]|)")
METHODS = ("rtn", "search", "gptq", "qronos", "awq", "auto")  # as quantisation.choice has them, which takes numpy
CACHE_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "int8", "fp8": "fp8"}


def compile_options(given: Mapping[str, Any]) -> CompileOptions:
    """The options of a command; without a format, codes of the checkpoint are kept. Levels are an option of the target.

    Raises click.BadParameter for a target that has none, or others already.
    """
    from dsv3c.compiler.options import CompileOptions

    fields = {name: value for name, value in given.items() if name != "levels"}
    if given["levels"] is not None:
        fields["target"] = _of_levels(given["target"], given["levels"])
    if given["quant"] is None:
        fields |= {"quant": CompileOptions.quant, "kept": None}
    return CompileOptions(**fields)


def _of_levels(target: str, levels: tuple[str, ...]) -> str:
    try:
        return str(targets.parse(target).choosing("levels", "+".join(levels)))
    except Dsv3cError as error:
        raise click.BadParameter(str(error), param_hint="'--levels'") from error


def adapters(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[Lora, ...]:
    """Adapters as they are given, FOLDER or FOLDER=SCALE; a folder that has such a name is that folder."""
    from dsv3c.compiler.options import Lora

    found = []
    for text in value:
        folder, _, scale = text.rpartition("=")
        number = Finite().convert(scale, param, ctx) if folder and not Path(text).exists() else None
        found.append(Lora(Path(text)) if number is None else Lora(Path(folder), number))
    return tuple(found)


def target_string(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A target string, checked against the table of targets."""
    try:
        return str(targets.parse(value))
    except Dsv3cError as error:
        raise click.BadParameter(str(error)) from error


def names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names separated by commas, each once."""
    if value is None:
        return None
    found = [part.strip() for part in value.split(",")]
    if not all(found):
        raise click.BadParameter(f"{value!r} must be names separated by commas")
    return tuple(dict.fromkeys(found))


def weight_format(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The full name of a weight format."""
    if value is None or (value == AUTO and param.name == "quant"):
        return value
    from dsv3c.compiler.formats.table import WeightFormat

    try:
        return WeightFormat.parse(SHORT_NAMES.get(value, value)).name
    except Dsv3cError as error:
        raise click.BadParameter(str(error)) from error


def embedding_format(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The full name of a format that an embedding can have."""
    from dsv3c.compiler.formats import rows

    name = weight_format(ctx, param, value)
    if name is not None and name not in rows.format_names():
        raise click.BadParameter(f"an embedding cannot be {name}: it is one of {', '.join(rows.format_names())}")
    return name


def byte_count(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes from a size with a unit: 8GB, 700 MB, 7.5GiB, or a plain number."""
    if value is None:
        return None
    match = _SIZE.fullmatch(value.strip())
    if not match or not float(match[1]):
        raise click.BadParameter(f"{value!r} is no size; write 8GB, 700MB or 7.5GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def cache_dtype(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """What CompileOptions calls an element type of the cache."""
    if value is None:
        return None
    name = SHORT_NAMES.get(value, value)
    if name not in CACHE_DTYPES:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(CACHE_DTYPES)}")
    return CACHE_DTYPES[name]


lora_option = click.option(
    "--lora",
    multiple=True,
    callback=adapters,
    metavar="ADAPTER",
    help="Merge this adapter into the weights before anything else: the folder of a LoRA as PEFT writes it. "
    "ADAPTER=0.5 merges half of it. Repeatable.",
)


def model_options(command: Command) -> Command:
    """Adds what decides how large and how exact the compiled model is: fields of CompileOptions."""
    options = (
        click.option(
            "-t",
            "--target",
            callback=target_string,
            default="x86",
            show_default=True,
            help="What to compile for; `dsv3c targets` lists the choices.",
        ),
        click.option(
            "--levels",
            callback=names,
            metavar="NAME,…",
            help="Kernel levels to build for a CPU, such as x86-64-v3,x86-64-v4-vnni. The CPU that runs the artifact "
            "needs one of them.  [default: all of the target]",
        ),
        click.option(
            "-q",
            "--quant",
            callback=weight_format,
            metavar="FORMAT",
            help=f"Format of the linear weights: {FORMAT_HELP}. int6, int5, int4 and int3 alone mean -g32, int2 -g16, "
            "nf4 -g64. auto chooses one for each weight, within --target-bpw or --max-size.  "
            "[default: int8; weights that the checkpoint has quantised keep their format]",
        ),
        lora_option,
        click.option(
            "--target-bpw",
            type=Finite(min=0, min_open=True),
            metavar="BITS",
            help="With --quant auto: stored bits for each linear weight, on average.",
        ),
        click.option(
            "--max-size",
            callback=byte_count,
            metavar="SIZE",
            help="With --quant auto: the most that the weights file takes, head and embedding included, such as 8GB.",
        ),
        click.option(
            "--quant-plan",
            type=PATH,
            metavar="FILE",
            help="Formats of single weights, as --quant auto writes them into quant-plan.json; --quant has the rest.",
        ),
        click.option(
            "--head-quant",
            callback=weight_format,
            metavar="FORMAT",
            help="Format of the output head.  "
            "[default: int8 with integer weights, bfloat16 with fp8, else as the weights]",
        ),
        click.option(
            "--embed-quant",
            callback=embedding_format,
            metavar="FORMAT",
            help="Format of the embedding: float32, float16, bfloat16 or int8.  "
            "[default: bfloat16 with integer weights and fp8, else as the weights]",
        ),
        click.option(
            "--method",
            type=click.Choice(METHODS),
            help="How weights become codes: round to nearest, search scales, GPTQ, Qronos, AWQ, the best for each.  "
            "[default: auto with --calibration, else rtn]",
        ),
        click.option(
            "--calibration",
            type=PATH,
            metavar="FILE",
            help="A text, or JSON lines of texts or chats, that weights are rounded for and --quant auto measures on.  "
            "[default: a short one of ours where the method wants one]",
        ),
        click.option(
            "--calibration-tokens",
            type=click.IntRange(min=LEAST_CALIBRATION_TOKENS),
            metavar="N",
            default=CALIBRATION_TOKENS,
            show_default=True,
            help="Most tokens of that text that are used.",
        ),
        click.option(
            "--sparsity-threshold",
            type=click.FloatRange(0, MAX_SPARSITY_THRESHOLD),
            metavar="X",
            default=0.0,
            help="Set weights below X times the root mean square of their group to 0 before rounding. That costs "
            "quality and saves nothing: for experiments.",
        ),
        click.option(
            "--cache-dtype",
            callback=cache_dtype,
            metavar="DTYPE",
            help="float32, bfloat16, or half of its memory: int8, fp8.  "
            "[default: float32 with float32 weights, else bfloat16]",
        ),
        click.option(
            "--max-tokens",
            type=click.IntRange(1, MAX_BOUND),
            metavar="N",
            default=512,
            show_default=True,
            help="Most tokens of one step: the size of the pieces in which a long prompt is read.",
        ),
        click.option(
            "--max-sequences",
            type=click.IntRange(1, MAX_BOUND),
            metavar="N",
            default=8,
            show_default=True,
            help="Most sequences that are generated side by side.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
