"""`dsv3c generate`: text from an artifact, of one prompt as it comes, of many as JSON lines."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3c.runtime.cli import answers, decoding, prompts
from dsv3c.runtime.cli.decoding import decoding_options
from dsv3c.runtime.cli.expert_report import counted, expert_options
from dsv3c.runtime.cli.group import DONE, FAULT, Command
from dsv3c.runtime.cli.guided import NAMES, guided_options, unfinished_note
from dsv3c.runtime.cli.output import echo, print_json
from dsv3c.runtime.cli.params import PATH, device_options, json_option, numa_option, threads_option
from dsv3c.runtime.cli.prompts import STDIN, Asked

if TYPE_CHECKING:
    from dsv3c.runtime.artifact.artifact import Artifact
    from dsv3c.runtime.engine.generation import Event, Generation
    from dsv3c.runtime.model import Model, Serving

SEED_BITS = 32  # short enough to type again
MACHINE = ("context", "max_batch", "threads", "numa", "device", "gpu_layers", "cpu_artifact")
EXPERTS = ("expert_stats", "expert_window")
_SECTIONS = {
    "Prompts": ("prompt", "prompts", "ids", "chat", "no_bos", "session"),
    **decoding.SECTIONS,
    "Structure": NAMES,
    "Experts": EXPERTS,
    "Machine": MACHINE,
}


@dataclass(frozen=True)
class Given:
    """What was asked for on the command line. path: of the file of prompts. many: the answers are
    JSON lines."""

    asked: list[Asked]
    how: dict[str, Any]
    path: str | None
    many: bool
    chat: bool
    session: Path | None


@click.command("generate", cls=Command, sections=_SECTIONS)
@click.argument("artifact", type=PATH)
@click.option(
    "-p",
    "--prompt",
    multiple=True,
    help="The text to continue; - reads it from stdin. Given several times the answers are JSON lines.",
)
@click.option(
    "--prompts",
    metavar="FILE",
    help='JSON lines with "prompt", "messages" or "ids", an "id" of any kind and parameters by name; - is stdin. The '
    "answers are JSON lines in the same order.",
)
@click.option("--ids", callback=decoding.token_ids, metavar='"N N …"', help="Token ids to continue, instead of a text.")
@click.option("--chat", is_flag=True, help="Put the prompt as a user's message, by the model's chat template.")
@click.option("--no-bos", is_flag=True, help="Leave out the BOS, the token that begins a text, before the prompt.")
@click.option(
    "--session",
    type=PATH,
    metavar="FILE",
    help="Go on with the conversation in this file, if it is there, and save it there with the answer.",
)
@decoding_options
@click.option("--context", type=click.IntRange(min=1), metavar="N", help="Tokens to hold at most, prompt included.")
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Sequences of that length to have memory for.  [default: what the prompts need, if all of a step fill it]",
)
@threads_option()
@numa_option
@guided_options
@expert_options
@device_options
@json_option
def generate_command(
    artifact: Path,
    prompt: tuple[str, ...],
    prompts: str | None,
    ids: list[int] | None,
    chat: bool,
    no_bos: bool,
    session: Path | None,
    context: int | None,
    max_batch: int | None,
    threads: int | None,
    numa: str,
    device: str | None,
    gpu_layers: int | None,
    cpu_artifact: Path | None,
    as_json: bool,
    expert_stats: Path | None,
    expert_window: int,
    **options: Any,
) -> int:
    """Generate text with an ARTIFACT.

    The prompt and its continuation stream to stdout (with --chat or --ids the answer alone), the speed goes to stderr.
    Several prompts are answered side by side, as JSON lines. What is not given is taken from the model's
    generation_config.json. A model without a tokenizer takes --ids, and prints ids.

    \b
    Examples:
      PROGRAM generate OUT -p "Once upon a time"
      PROGRAM generate OUT -p "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 7
      PROGRAM generate OUT -p "Once upon a time" --num-beams 4 --num-return-sequences 2
      PROGRAM generate OUT --chat -p "Why is the sky blue?" --session sky.session
      PROGRAM generate OUT -p - --json < prompt.txt
      PROGRAM generate OUT --prompts prompts.jsonl > answers.jsonl
      PROGRAM generate OUT --ids "0 17 42"
      PROGRAM generate OUT -p "The king in JSON:" --json-schema king.json
      PROGRAM generate GPU_OUT -p "Once upon a time" --gpu-layers 12 --cpu-artifact CPU_OUT
    """
    from dsv3c.runtime.artifact.artifact import Artifact
    from dsv3c.runtime.devices.device import Placement
    from dsv3c.runtime.model import Model

    speculate = decoding.drafter(options)
    _require_one_kind(prompt, prompts, ids)
    _require_texts(chat, no_bos, prompts, ids)
    _require_one_answer(session, prompt, prompts, options)
    how = decoding.request_settings(options)
    many = prompts is not None or len(prompt) > 1
    given = Given(_asked(prompt, prompts, ids, chat, no_bos), how, prompts, many, chat, session)
    opened = Artifact.open(artifact)
    _require_parameters(opened, given)
    placement = Placement(threads, device, gpu_layers, cpu_artifact, numa)
    serving = _serving(opened, given, context, max_batch, speculate)
    with Model.load(opened, placement, serving) as model, counted(model, expert_stats, expert_window):
        if given.many:
            return _print_many(model, given)
        _print_one(model, given, as_json)
        return DONE


def _require_one_kind(prompt: tuple[str, ...], prompts: str | None, ids: list[int] | None) -> None:
    if bool(prompt) + (prompts is not None) + (ids is not None) != 1:
        raise click.UsageError("give either --prompt, --prompts or --ids")
    if prompt.count(STDIN) > 1:
        raise click.UsageError("only one prompt is read from stdin; --prompts - reads many")


def _require_texts(chat: bool, no_bos: bool, prompts: str | None, ids: list[int] | None) -> None:
    if chat and ids is not None:
        raise click.UsageError("--chat needs a text, not --ids")
    if no_bos and (chat or ids is not None):
        raise click.UsageError("--no-bos is for plain prompts: a chat's template, and --ids, say what begins a text")


def _require_one_answer(
    session: Path | None, prompt: tuple[str, ...], prompts: str | None, options: Mapping[str, Any]
) -> None:
    if session is None:
        return
    if prompts is not None or len(prompt) > 1 or (options["num_return_sequences"] or 1) > 1:
        raise click.UsageError("--session goes on with one answer to one prompt")


def _asked(prompt: tuple[str, ...], path: str | None, ids: list[int] | None, chat: bool, no_bos: bool) -> list[Asked]:
    add_bos = False if no_bos else None
    if path is not None:
        return prompts.read_prompts(path, chat, add_bos)
    if ids is not None:
        return [Asked(ids)]
    texts = [prompts.read_prompt() if text == STDIN else text for text in prompt]
    return [Asked(prompts.as_chat(text) if chat else text, add_bos=add_bos) for text in texts]


def _require_parameters(artifact: Artifact, given: Given) -> None:
    """Before anything is loaded: what a person can mend at once."""
    from dsv3c.runtime.engine.generation import settings
    from dsv3c.runtime.model import defaults_of

    defaults, has_tokenizer = defaults_of(artifact), "tokenizer.json" in artifact.manifest.files
    common = {name: value for name, value in given.how.items() if name != "bad_words"}
    settings(defaults, decoding.with_length(common), has_tokenizer)
    if given.path is not None:
        prompts.require_parameters(
            given.path,
            given.asked,
            lambda how: settings(defaults, decoding.with_length({**common, **how}), has_tokenizer),
        )


def _serving(
    artifact: Artifact, given: Given, context: int | None, max_batch: int | None, speculate: str | None
) -> Serving:
    """Memory for all prompts that a step can hold, unless it was said for how many."""
    from dsv3c.runtime.cli.many import sequences_for
    from dsv3c.runtime.model import Serving

    sizes = []
    for asked in given.asked:
        how = decoding.with_length({**given.how, **asked.how})
        new = how.get("max_new_tokens") or how["max_length"]
        sizes.append((asked.most_tokens, new, max(how.get("num_beams", 1), how.get("num_return_sequences", 1))))
    batch = max_batch or sequences_for(artifact.plan, context, sizes)
    return Serving(context, batch, speculate)


def _how(model: Model, given: Given, asked: Asked) -> dict[str, Any]:
    """The parameters of a request, its seed among them."""
    how = decoding.with_length({**given.how, **asked.how})
    if "random_seed" in how:
        how["seed"] = how.pop("random_seed")
    if how.get("seed") is None:
        how["seed"] = secrets.randbits(SEED_BITS)
    return decoding.with_word_ids(how, model.tokenizer) if "bad_words" in how else how


# ---- many prompts


def _print_many(model: Model, given: Given) -> int:
    from contextlib import nullcontext

    from dsv3c.runtime.cli import many
    from dsv3c.runtime.cli.progress import batch_progress
    from dsv3c.runtime.progress import Silent

    _require_guides(model, given)
    with batch_progress() or nullcontext(Silent()) as progress:
        totals = many.answer_all(model, given.asked, lambda asked: _how(model, given, asked), progress)
    reasons = ", ".join(f"{count} {reason}" for reason, count in totals.reasons.items())
    seconds = max(totals.seconds, 1e-9)
    told = f"{totals.prompts} prompts, {totals.tokens} tokens at {totals.tokens / seconds:.1f} tok/s"
    echo(f"{told}, finish_reason {reasons or 'none'}", err=True)
    for note in answers.speculation_notes(model):
        echo(note, err=True)
    if totals.failed:
        echo(f"error: {totals.failed} of {totals.prompts} prompts failed; their lines have an error", err=True)
    return FAULT if totals.failed else DONE


def _require_guides(model: Model, given: Given) -> None:
    """What answers are to follow is compiled before any of them begins."""

    def check(how: Mapping[str, Any]) -> None:
        if any(how.get(name) is not None for name in NAMES):
            model.parameters({**guide, **how})

    guide = {name: given.how[name] for name in (*NAMES, "eos_token_id") if name in given.how}
    check(guide)
    if given.path is not None:
        prompts.require_parameters(given.path, given.asked, check)


# ---- one prompt


def _print_one(model: Model, given: Given, as_json: bool) -> None:
    asked = given.asked[0]
    how = _how(model, given, asked)
    prompt, add_bos = asked.prompt, asked.add_bos
    session = None
    if given.session is not None:
        from dsv3c.runtime.cli.sessions import TextSession

        session = TextSession.opened(model, given.session, given.chat)
        prompt, add_bos = session.prompt(prompt, add_bos), None
    ticket = model.submit(prompt, add_bos, **how)
    beginning = asked.prompt if isinstance(asked.prompt, str) else ""
    several = model.parameters(how).num_return_sequences > 1
    if as_json:
        generations = ticket.results()
    elif several:
        generations = ticket.results()
        _print_apart(model, generations, beginning)
    else:
        echo(beginning, nl=False)
        generations = [_streamed(model, ticket)]
    if session is not None:
        session.save(generations[0])
    if as_json:
        print_json({**answers.request_report(model, generations, how), "device": model.report()})
        return
    for generation in generations:
        for line in answers.logprob_lines(model, generation.logprobs):
            echo(line)
    params = model.parameters(how)
    echo(answers.summary(model, generations, how["seed"] if params.temperature > 0 else None), err=True)
    for note in answers.notes(model, generations, params.max_new_tokens):
        echo(note, err=True)
    for generation in generations:
        if (unfinished := unfinished_note(how, generation)) is not None:
            echo(f"note: {unfinished}", err=True)


def _streamed(model: Model, events: Any) -> Generation:
    """Prints an answer as it comes."""
    last = None
    for event in events:
        echo(event.text if model.has_tokenizer else _id(event), nl=False)
        last = event.generation
    if last is None:
        raise AssertionError("a stream ends with its generation")
    echo()
    found: Generation = last
    return found


def _print_apart(model: Model, generations: Many[Generation], beginning: str) -> None:
    for number, generation in enumerate(generations, start=1):
        score = "" if generation.score is None else f", score {generation.score:.4f}"
        echo(f"--- {number} of {len(generations)}{score}")
        echo(beginning + generation.text if model.has_tokenizer else " ".join(map(str, generation.token_ids)))


def _id(event: Event) -> str:
    return "" if event.token_id is None else f"{event.token_id} "
