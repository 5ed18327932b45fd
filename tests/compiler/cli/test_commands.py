"""What the commands print and what they hand on, without compiling anything."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dsv3c import targets
from dsv3c.compiler import cli
from dsv3c.compiler.cli import params
from dsv3c.compiler.cli.program import root
from dsv3c.compiler.driver import machine, pipeline
from dsv3c.compiler.driver.pipeline import CompileReport
from dsv3c.compiler.formats.table import listed
from dsv3c.compiler.options import CompileOptions
from dsv3c.compiler.quantisation.choice import method_names
from dsv3c.runtime.cli.program import root as runtime_root
from dsv3c.runtime.cli.progress import NotesOnly


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[str, str]:
    """stdout and stderr of a command that succeeds."""
    code = cli.run(args)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out, captured.err


class Recorded:
    """Stands for the pipeline: keeps what it was asked and answers with a fixed report."""

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self.options: CompileOptions | None = None

    def __call__(self, checkpoint: Path, out: Path | None, options: CompileOptions, progress: Any) -> CompileReport:
        self.options = options
        assert isinstance(progress, NotesOnly)  # stderr is no terminal in a test
        manifest = {
            "target": {
                "name": "x86:levels=x86-64-v3+x86-64-v4",
                "levels": [{"name": "x86-64-v3"}, {"name": "x86-64-v4"}],
            },
            "quantization": {"weights": "int8", "head": "int8", "embedding": "bfloat16", "cache": "bfloat16"},
            "memory": {"weights_bytes": 9_900_000},
        }
        return CompileReport(self.out, manifest, ("config.json has no x",), 1.25, 300_000_000)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    stand_in = Recorded(Path("OUT"))
    monkeypatch.setattr(pipeline, "compile_checkpoint", stand_in)
    return stand_in


def test_the_next_command_is_one_that_works(
    recorded: Recorded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_text(*arguments: Any) -> CompileReport:
        report = recorded(*arguments)
        model = {"model": {"bos_token_id": 7}}
        return dataclasses.replace(report, manifest={**report.manifest, **model}, takes_text=False)

    monkeypatch.setattr(pipeline, "compile_checkpoint", without_text)
    out, _ = run(capsys, "compile", "MODEL")
    assert out.splitlines()[-1] == 'run it: dsv3c generate OUT --ids "7"'


def test_a_note_is_told_once(
    recorded: Recorded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def telling(checkpoint: Path, out: Path | None, options: CompileOptions, progress: Any) -> CompileReport:
        progress.tell("note: early")
        return dataclasses.replace(recorded(checkpoint, out, options, progress), notes=("early", "late"), told=1)

    monkeypatch.setattr(pipeline, "compile_checkpoint", telling)
    assert run(capsys, "compile", "MODEL")[1] == "note: early\nnote: late\n"


def test_compile_says_what_was_built_and_where(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "compile", "MODEL")
    assert out.splitlines() == [
        "built OUT",
        "  weights  9.90 MB in int8 (head int8, embedding bfloat16, cache bfloat16)",
        "  kernels  x86: x86-64-v3, x86-64-v4",
        "  took     1.2 s, at most 300 MB of memory",
        'run it: dsv3c generate OUT -p "Once upon a time"',
    ]
    assert err == "note: config.json has no x\n"
    assert recorded.options == CompileOptions(kept=None)  # no format was asked for


def test_compile_hands_its_options_on(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    args = "--quant int4 --head-quant f16 --embed-quant int8 --cache-dtype float32 --max-tokens 64 --max-sequences 2"
    run(capsys, "compile", "MODEL", *args.split(), "--overwrite", "--dump-to", "graphs")
    assert recorded.options == CompileOptions(
        quant="int4-g32",
        head_quant="float16",
        embed_quant="int8",
        cache_dtype="f32",
        max_tokens=64,
        max_sequences=2,
        overwrite=True,
        dump_to=Path("graphs"),
    )


def test_levels_become_an_option_of_the_target(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "compile", "MODEL", "--levels", "x86-64-v3, x86-64-v4-vnni")
    assert recorded.options == CompileOptions(target="x86:levels=x86-64-v3+x86-64-v4-vnni", kept=None)
    run(capsys, "compile", "MODEL", "--target", "arm:os=macos,levels=armv8.0", "--levels", "armv8.0")
    assert recorded.options == CompileOptions(target="arm:os=macos,levels=armv8.0", kept=None)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--target", "vulkan", "--levels", "x86-64-v3"], "target vulkan has no option 'levels'"),
        (["--target", "x86:levels=x86-64-v4", "--levels", "x86-64-v3"], "which is not 'x86-64-v3'"),
        (["--levels", "x86-64-v3,,"], "must be names separated by commas"),
    ],
)
def test_levels_that_a_target_cannot_take_are_refused(
    args: list[str], says: str, recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["compile", "MODEL", *args]) == 2
    error = capsys.readouterr().err
    assert "Invalid value for '--levels'" in error and says in error
    assert recorded.options is None


@pytest.mark.parametrize(("given", "taken"), [("bf16", "bf16"), ("int8", "int8"), ("fp8", "fp8")])
def test_the_cache_is_of_what_it_is_asked_to_be(
    given: str, taken: str, recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "compile", "MODEL", "--cache-dtype", given)
    assert recorded.options == CompileOptions(cache_dtype=taken, kept=None)


def test_compile_to_a_pass_builds_nothing(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    recorded.out = None
    out, _ = run(capsys, "compile", "MODEL", "--to", "fuse-mla", "--dump-to", "graphs")
    assert out == "stopped after fuse-mla: no artifact written; the graphs are in graphs\n"
    assert recorded.options is not None and recorded.options.stop_after == "fuse-mla"


def test_compile_json(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, "compile", "MODEL", "--json")[0])
    assert (report["out"], report["peak_rss_bytes"]) == ("OUT", 300_000_000)
    assert report["manifest"]["quantization"]["weights"] == "int8"


def test_what_was_measured_is_told(
    recorded: Recorded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"text": "a.txt", "tokens": 99, "nll": 3.0, "nll_error": 0.1, "perplexity": 20.1, "perplexity_error": 2.0}
    quality = {"device": "cpu", "context": 512, "against": None, "texts": [figures]}

    def measuring(*arguments: Any) -> CompileReport:
        report = recorded(*arguments)
        return dataclasses.replace(report, manifest={**report.manifest, "quality": quality})

    monkeypatch.setattr(pipeline, "compile_checkpoint", measuring)
    out, _ = run(capsys, "compile", "MODEL", "--measure", "a.txt", "--measure-against", "MODEL")
    assert recorded.options is not None
    assert (recorded.options.measure, recorded.options.measure_against) == (Path("a.txt"), Path("MODEL"))
    assert "measured on cpu, windows of 512 tokens\na.txt, 99 predictions\n  perplexity               20.1000 ±" in out


def test_inspect_a_checkpoint(bundled_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, "inspect", str(bundled_model), "--json")[0])
    assert report["config"]["kv_lora_rank"] == 128
    # 4 layers, 1 MTP layer: as its README says, 9.7 million, most of them in experts.
    assert sum(part["weights"] for part in report["parts"].values()) == pytest.approx(9.7e6, rel=0.01)
    assert report["parts"]["routed experts"]["weights"] == 3 * 16 * 3 * 256 * 128
    assert report["parts"]["routed experts"]["format"].startswith("F8_E4M3")
    assert report["parts"]["embedding"]["nbytes"] == 2 * 2048 * 256

    text, _ = run(capsys, "inspect", str(bundled_model))
    assert "checkpoint of a deepseek_v3, 9.72 million weights" in text
    assert "mlp_layer_types           dense, 4 sparse" in text


def test_inspect_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(tmp_path)]) == 1
    assert "it has neither manifest.json nor config.json" in capsys.readouterr().err


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "targets")[0].startswith("x86  x86-64 CPUs")
    assert "x86" in json.loads(run(capsys, "targets", "--json")[0])


# bench has the letters of llama-bench for what that has, too.
OF_LLAMA_BENCH = {"-p": "--prompt-tokens", "-n": "--new-tokens", "-t": "--threads", "-o": "--output"}


def test_an_option_has_the_same_letters_in_every_command_and_a_letter_one_meaning() -> None:
    letters, meanings = dict[str, set[str]](), dict[str, set[str]]()
    commands = [command for group in (root, runtime_root) for command in group.commands.values()]
    options = [(command.name, param) for command in commands for param in command.params]
    for name, param in options:
        full = max(param.opts, key=len)
        of_its_own = {letter for letter, of in OF_LLAMA_BENCH.items() if (name, full) == ("bench", of)}
        short = [letter for letter in param.opts if not letter.startswith("--") and letter not in of_its_own]
        if full.startswith("--") and full != "--output":  # of bench a form, of a sweep files
            letters.setdefault(full, set()).add("".join(short))
            for letter in short:
                meanings.setdefault(letter, set()).add(full)
    assert {name: found for name, found in letters.items() if len(found) > 1} == {}
    assert {letter: found for letter, found in meanings.items() if len(found) > 1} == {}


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, "doctor", "--json")[0])
    assert report["cpu"]["physical_cores"] >= 1
    assert report["packages"]["numpy"]
    assert set(report["targets"]) == set(targets.available())
    text, _ = run(capsys, "doctor")
    assert all(f"\n{title}\n" in "\n" + text for title in ("cpu", "memory", "tools", "packages", "targets"))


def test_doctor_says_what_a_target_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    need = machine.Need("c-compiler", lambda: None, "links kernel libraries", "install gcc")
    monkeypatch.setattr(machine, "NEEDS", {**machine.NEEDS, "c-compiler": need})
    text, _ = run(capsys, "doctor")
    assert re.search(r"\n  x86 +needs c-compiler \(install gcc\)\n", text)


def test_every_need_of_a_target_is_known() -> None:
    assert [state.target for state in machine.readiness()] == list(targets.available())


def test_the_help_names_the_formats_of_the_table() -> None:
    assert listed() == params.FORMAT_HELP


def test_the_command_line_has_the_methods_of_the_table() -> None:
    assert method_names() == params.METHODS


@pytest.mark.parametrize(("short", "full"), [("int2", "int2-g16"), ("int3", "int3-g32"), ("int6", "int6-g32"),
                                             ("int8", "int8"), ("int8-channel-asym", "int8-asym")])  # fmt: skip
def test_bits_alone_name_a_format(short, full):
    assert params.weight_format(None, None, short) == full
