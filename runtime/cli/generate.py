"""`dsv3c generate`: text from an artifact."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3c.runtime.cli.group import Command
from dsv3c.runtime.cli.guided import guided_options, unfinished_note
from dsv3c.runtime.cli.output import echo, print_json
from dsv3c.runtime.cli.params import PATH, Finite, device_options, json_option
from dsv3c.runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from dsv3c.runtime.engine.generation import Event, Generation
    from dsv3c.runtime.model import Model

PROMPT_LIMIT = 64 << 20  # bytes
SEED_BITS = 32  # short enough to type again


class InputUnreadable(RuntimeFault):
    message = "cannot read the prompt from stdin: {reason}"
    hint = "give it with -p, or as UTF-8 text: dsv3c generate OUT -p - < prompt.txt"


def read_prompt() -> str:
    """The text on stdin, in UTF-8 whatever the locale; a byte order mark is no part of it. Raises InputUnreadable."""
    if sys.stdin is None:
        raise InputUnreadable(reason="it is closed")
    try:
        data = sys.stdin.buffer.read(PROMPT_LIMIT + 1)
    except OSError as error:
        raise InputUnreadable(reason=error.strerror) from error
    if len(data) > PROMPT_LIMIT:
        raise InputUnreadable(reason=f"it has more than {PROMPT_LIMIT} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputUnreadable(reason=f"byte {error.start} is not UTF-8") from error


def token_ids(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """An option's callback: whole numbers separated by spaces or commas."""
    found = None if value is None else value.replace(",", " ").split()
    if found is not None and not all(part.isascii() and part.isdigit() and len(part) < 10 for part in found):
        raise click.BadParameter(f"{value!r} must be token ids, separated by spaces")
    return None if found is None else [int(part) for part in found]


def non_empty(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(value):
        raise click.BadParameter("an empty text stands everywhere")
    return value


@click.command("generate", cls=Command)
@click.argument("artifact", type=PATH)
@click.option("-p", "--prompt", help="The text to continue; - reads it from stdin.")
@click.option("--ids", callback=token_ids, metavar='"N N …"', help="Token ids to continue, instead of a text.")
@click.option(
    "-n",
    "--max-new-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    default=200,
    show_default=True,
    help="Tokens to generate at most.",
)
@click.option(
    "--temperature",
    type=Finite(min=0),
    metavar="T",
    help="0 takes the likeliest token; higher is more varied.",
)
@click.option(
    "--top-k", type=click.IntRange(min=0), metavar="K", help="Choose among the K likeliest tokens only; 0 is off."
)
@click.option(
    "--top-p",
    type=Finite(0, 1, min_open=True),
    metavar="P",
    help="Choose among the likeliest tokens that make up this probability; 1 is off.",
)
@click.option(
    "--min-p",
    type=Finite(0, 1),
    metavar="P",
    help="Drop tokens less likely than this share of the likeliest; 0 is off.",
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="The same seed gives the same text.")
@click.option(
    "--stop",
    multiple=True,
    callback=non_empty,
    metavar="TEXT",
    help="End before this text; can be given several times.",
)
@click.option("--chat", is_flag=True, help="Put the prompt as a user's message, by the model's chat template.")
@click.option("--no-bos", is_flag=True, help="Leave out the BOS, the token that begins a text, before the prompt.")
@click.option("--context", type=click.IntRange(min=1), metavar="N", help="Tokens to hold at most, prompt included.")
@click.option(
    "-j", "--threads", type=click.IntRange(min=1), metavar="N", help="Threads to use.  [default: all physical cores]"
)
@guided_options
@device_options
@json_option
def generate_command(
    artifact: Path,
    prompt: str | None,
    ids: list[int] | None,
    chat: bool,
    no_bos: bool,
    context: int | None,
    threads: int | None,
    device: str | None,
    gpu_layers: int | None,
    cpu_artifact: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Generate text with an ARTIFACT.

    The prompt and its continuation stream to stdout (with --chat or --ids the answer alone), the speed goes to stderr.
    What is not given is taken from the model's generation_config.json. A model without a tokenizer takes --ids, and
    prints ids.

    \b
    Examples:
      PROGRAM generate OUT -p "Once upon a time"
      PROGRAM generate OUT -p "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 7
      PROGRAM generate OUT --chat -p "Why is the sky blue?"
      PROGRAM generate OUT -p - --json < prompt.txt
      PROGRAM generate OUT --ids "0 17 42"
      PROGRAM generate OUT -p "The king in JSON:" --json-schema king.json
      PROGRAM generate GPU_OUT -p "Once upon a time" --gpu-layers 12 --cpu-artifact CPU_OUT
    """
    from dsv3c.runtime import load

    if (prompt is None) == (ids is None):
        raise click.UsageError("give either --prompt or --ids")
    if chat and ids is not None:
        raise click.UsageError("--chat needs a text, not --ids")
    if no_bos and (chat or ids is not None):
        raise click.UsageError("--no-bos is for plain prompts: a chat's template, and --ids, say what begins a text")
    text = read_prompt() if prompt == "-" else prompt or ""
    params = {name: value for name, value in options.items() if value is not None}
    params.setdefault("seed", secrets.randbits(SEED_BITS))
    with load(artifact, threads, context, None, device, gpu_layers, cpu_artifact) as model:
        add_bos = False if no_bos else None
        given: Any = ids if ids is not None else [{"role": "user", "content": text}] if chat else text
        events = model.stream(given, add_bos, **params)
        if not as_json and not chat:
            echo(text, nl=False)
        for event in events:
            if not as_json:
                echo(event.text if model.has_tokenizer else _id(event), nl=False)
        if event.generation is None:
            raise AssertionError("a stream ends with its generation")
        report = _report(model, event.generation, params)
    if as_json:
        print_json(report)
        return
    echo()
    echo(_speed(report), err=True)
    if (note := unfinished_note(params, event.generation)) is not None:
        echo(f"note: {note}", err=True)
    if report["finish_reason"] == "length" and report["new_tokens"] < params["max_new_tokens"]:
        echo(f"note: the context of {model.context} tokens is full", err=True)


def _id(event: Event) -> str:
    return "" if event.token_id is None else f"{event.token_id} "


def _report(model: Model, generation: Generation, params: dict[str, Any]) -> dict[str, Any]:
    sampled = model.defaults.updated(params).temperature > 0
    return {
        "text": generation.text,
        "token_ids": list(generation.token_ids),
        "finish_reason": generation.finish_reason,
        "seed": params["seed"] if sampled else None,
        "prompt_tokens": generation.prompt_tokens,
        "new_tokens": len(generation.token_ids),
        "prompt_tokens_per_second": round(generation.prompt_tokens_per_second, 2),
        "decode_tokens_per_second": round(generation.decode_tokens_per_second, 2),
        "first_token_seconds": round(generation.first_token_seconds, 4),
        "device": model.report(),
    }


def _speed(report: dict[str, Any]) -> str:
    seed = "" if report["seed"] is None else f", seed {report['seed']}"
    place = f" on {report['device']['name']}" if "name" in report["device"] else ""
    return (
        f"{report['new_tokens']} tokens at {report['decode_tokens_per_second']:.1f} tok/s, "
        f"prompt of {report['prompt_tokens']} at {report['prompt_tokens_per_second']:.1f} tok/s{seed}{place}"
    )
