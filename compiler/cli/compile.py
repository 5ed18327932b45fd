"""`dsv3c compile`: from a checkpoint to an artifact."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3c.compiler.cli.params import compile_options, model_options
from dsv3c.runtime.cli.eval import show_figures
from dsv3c.runtime.cli.output import echo, print_json, section, size
from dsv3c.runtime.cli.params import PATH, json_option

if TYPE_CHECKING:
    from dsv3c.compiler.driver.pipeline import CompileReport


@click.command("compile")
@click.argument("checkpoint", type=PATH)
@click.option(
    "-o", "--out", type=PATH, help="Where to write the artifact.  [default: artifacts/<model>-<quant>-<target>]"
)
@model_options
@click.option("--overwrite", is_flag=True, help="Replace an artifact that is already there, and nothing else.")
@click.option("--restart", is_flag=True, help="Discard what an interrupted run with other options left of its weights.")
@click.option(
    "--emit",
    multiple=True,
    metavar="FORM",
    help="Also write this form of the artifact: native (a C library and program), tvm (a TVM IRModule). Repeatable.",
)
@click.option(
    "--cache-dir",
    type=PATH,
    metavar="DIR",
    help="Take compiled kernels of a CPU target from DIR, where earlier runs with it left them. The artifact has the "
    "same bytes as without.",
)
@click.option("--to", "stop_after", metavar="PASS", help="Stop after this pass and write no artifact.")
@click.option("--dump-to", type=PATH, metavar="DIR", help="Write the graph after each pass into DIR, numbered.")
@click.option("--measure", type=PATH, metavar="FILE", help="Put into the manifest how well it predicts this text.")
@click.option(
    "--measure-against",
    type=PATH,
    metavar="OTHER",
    help="And how far from this artifact, or checkpoint, which is compiled to float32 for it.",
)
@json_option
def compile_command(checkpoint: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Compile a CHECKPOINT into an artifact for one target.

    CHECKPOINT is a folder as Hugging Face has it: config.json, *.safetensors, tokenizer.json; or the id of one on the
    hub, ORG/NAME or ORG/NAME@REVISION, whose files are fetched into the cache of huggingface-hub; or a GGUF file, of a
    split one any part. The artifact is a folder; copy it to the device and run it there with `dsv3c generate`. Weights
    are read, quantised and written one layer at a time, and an interrupted run leaves nothing that looks finished. The
    same command goes on where a run was killed.

    \b
    Examples:
      dsv3c compile artifacts/models/fairytale-10m
      dsv3c compile ~/models/Moonlight-16B-A3B --quant int4 -o moonlight-int4
      dsv3c compile moonshotai/Moonlight-16B-A3B --quant int4
      dsv3c compile ~/models/Moonlight-16B-A3B-Q4_0.gguf
      dsv3c compile CHECKPOINT --quant int4 --measure book.txt --measure-against CHECKPOINT
      dsv3c compile CHECKPOINT --to fuse-mla --dump-to graphs   look at what the passes do
    """
    from dsv3c.compiler.driver.pipeline import compile_checkpoint
    from dsv3c.compiler.errors import UnknownFormError, UnknownPassError
    from dsv3c.runtime.cli.progress import NotesOnly, terminal_progress

    chosen = compile_options(options)
    with terminal_progress() or nullcontext(NotesOnly()) as progress:
        try:
            report = compile_checkpoint(checkpoint, out, chosen, progress)
        except UnknownPassError as error:
            raise click.BadParameter(str(error), param_hint="'--to'") from error
        except UnknownFormError as error:
            raise click.BadParameter(str(error), param_hint="'--emit'") from error
    for note in report.notes[report.told :]:
        echo(f"note: {note}", err=True)
    if as_json:
        print_json(
            {
                "out": str(report.out) if report.out else None,
                "seconds": round(report.seconds, 3),
                "peak_rss_bytes": report.peak_rss,
                "notes": list(report.notes),
                "manifest": report.manifest,
            }
        )
        return
    if report.out is None:
        where = f"; the graphs are in {chosen.dump_to}" if chosen.dump_to else ""
        echo(f"stopped after {chosen.stop_after}: no artifact written{where}")
        return
    _tell(report)


def _tell(report: CompileReport) -> None:
    manifest = report.manifest
    quantization = manifest["quantization"]
    others = ", ".join(f"{part} {quantization[part]}" for part in ("head", "embedding", "cache"))
    section(
        f"built {report.out}",
        [
            ("weights", f"{size(manifest['memory']['weights_bytes'])} in {_formats(quantization)} ({others})"),
            _code(manifest["target"]),
            ("took", f"{report.seconds:.1f} s, at most {size(report.peak_rss)} of memory"),
        ],
    )
    if "quality" in manifest:
        show_figures("measured", manifest["quality"])
    prompt = '-p "Once upon a time"' if report.takes_text else f'--ids "{manifest["model"]["bos_token_id"] or 0}"'
    echo(f"run it: dsv3c generate {report.out} {prompt}")


def _formats(quantization: dict[str, Any]) -> str:
    if "bits_per_weight" not in quantization:
        return str(quantization["weights"])
    return f"formats of {quantization['bits_per_weight']:.2f} bits a linear weight"


def _code(target: dict[str, Any]) -> tuple[str, str]:
    """The row that says what runs: kernel levels, or the graphs or modules of a target that has those."""
    if "graphs" in target:
        return "graphs", f"{target['name']}: {', '.join(target['graphs'].values())}"
    levels = ", ".join(level["name"] for level in target["levels"])
    family = target["name"].partition(":")[0]  # which levels were asked for is seen by those that are there
    return "kernels", f"{family}: {levels or target['modules']}"
