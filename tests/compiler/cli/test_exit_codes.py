"""How the command ends: the exit code, one message on stderr, and never a traceback that nobody asked for."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dsv3c.compiler import cli
from dsv3c.compiler.cli.program import root
from dsv3c.compiler.errors import Dsv3cError
from dsv3c.runtime.errors import RuntimeFault
from tests.checkpoints import tiny_config, write_checkpoint, write_safetensors
from tests.conftest import heed_signals
from tests.waiting import PATIENCE


class LostKey(Dsv3cError):
    message = "the key {key!r} is lost"
    hint = "look under the mat"


class LostArtifact(RuntimeFault):
    message = "the artifact {path} is lost"


def run_raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    @click.command("fail")
    def fail() -> None:
        raise error

    monkeypatch.setitem(root.commands, "fail", fail)
    return cli.run(["fail"])


def dsv3c(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from dsv3c.compiler.cli import main; main()", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (LostKey(key="k"), "error: the key 'k' is lost\n  hint: look under the mat\n"),
        (LostArtifact(path="p"), "error: the artifact p is lost\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out"), "error: No space left on device: out\n  hint: "),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device\n  hint: make room"),
        (MemoryError(), "error: out of memory\n"),
        (
            ImportError("IMPORTANT: read this\n\nOriginal error was: a.so: failed to map segment from shared object"),
            "error: out of memory\n  hint: ",
        ),
        (ImportError("No module\nnamed x"), "error: a package cannot be imported: No module named x\n  hint: "),
        (ValueError("odd"), "error: ValueError: odd\n  hint: this is a fault of dsv3c"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_faults_are_one_message_and_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, says: str
) -> None:
    monkeypatch.delenv("DSV3C_DEBUG", raising=False)
    assert run_raising(monkeypatch, error) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(says)
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_debug_adds_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", "1")
    assert run_raising(monkeypatch, LostKey(key="k")) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("error: the key 'k' is lost\n  hint: look under the mat\n")


@pytest.mark.parametrize("level", ["9", "-1", "01", "loud"])
def test_a_debug_level_that_is_none_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: str
) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", level)
    assert run_raising(monkeypatch, LostKey(key="k")) == 1
    assert capsys.readouterr().err == f"error: DSV3C_DEBUG is {level!r}; expected a number from 0 to 4\n"


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_raising(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


@pytest.mark.parametrize(
    "args",
    [
        ["bogus"],
        ["compile"],
        ["compile", "x", "--bogus"],
        ["compile", "x", "--quant", "int7"],
        ["compile", "x", "--quant", "int4-g48"],
        ["compile", "x", "--head-quant", "int7"],
        ["compile", "x", "--cache-dtype", "int4"],
        ["compile", "x", "--target", "z80"],
        ["compile", "x", "--target", "x86:cpu"],
        ["compile", "x", "--max-tokens", "0"],
        ["compile", "x", "--max-tokens", "65537"],
        ["compile", "x", "--embed-quant", "int4"],
        ["generate", "x"],
        ["generate", "x", "-p", "a", "--temperature", "-1"],
        ["generate", "x", "-p", "a", "--top-p", "2"],
        ["generate", "x", "-p", "a", "--temperature", "nan"],
        ["generate", "x", "-p", "a", "--min-p", "nan"],
        ["generate", "x", "-p", "a", "--stop", ""],
        ["generate", "x", "-p", "a", "--prompts", "y"],
        ["generate", "x", "-p", "-", "-p", "-"],
        ["generate", "x", "-p", "a", "--logit-bias", "5"],
        ["generate", "x", "-p", "a", "--logit-bias", "5=nan"],
        ["generate", "x", "-p", "a", "--logit-bias", "5=1", "--logit-bias", "5=2"],
        ["generate", "x", "-p", "a", "--suppress-tokens", "1 two"],
        ["generate", "x", "-p", "a", "--bad-words", ""],
        ["generate", "x", "-p", "a", "--speculate", "mtp", "--draft", "y"],
        ["chat", "x", "--num-return-sequences", "2"],
        ["plan", "x", "--context", "none"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(args) == 2
    captured = capsys.readouterr()
    assert "Usage: dsv3c" in captured.err and "Error: " in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("command", ["compile", "inspect", "verify", "plan"])
def test_a_missing_folder_is_1(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing")
    assert cli.run([command, missing]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and missing in error and "this is a fault of dsv3c" not in error


def test_a_weight_too_large_for_its_format_is_named_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("deepseek_v3", num_hidden_layers=2)
    tensors = write_checkpoint(tmp_path / "model", config)
    tensors["model.layers.0.self_attn.o_proj.weight"][3, 5] = -1e5
    write_safetensors(tmp_path / "model" / "model.safetensors", tensors)
    args = ["compile", str(tmp_path / "model"), "-t", "onnx", "-q", "float16", "-o", str(tmp_path / "out")]
    assert cli.run(args) == 1
    assert capsys.readouterr().err.endswith(
        "\nerror: 'model.layers.0.self_attn.o_proj.weight' is -1e+05 at [3, 5], too large for float16: it would become"
        " infinity\n  hint: choose a wider format, such as bfloat16: --quant, --head-quant for the head, --embed-quant"
        " for the embedding\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("command", sorted(root.commands))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--help"]) == 0
    assert f"Usage: dsv3c {command}" in capsys.readouterr().out


def test_as_a_process() -> None:
    assert dsv3c("--version").stdout.startswith("dsv3c 0.")
    missing = dsv3c("inspect", "no/such/folder")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("error: no/such/folder is neither an artifact nor a checkpoint")
    assert dsv3c("bogus").returncode == 2
    assert dsv3c("compile", "x", DSV3C_DEBUG="loud").returncode == 1


def test_a_closed_pipe_is_quiet(bundled_model: Path) -> None:
    command = [sys.executable, "-c", "from dsv3c.compiler.cli import main; main()", "inspect", str(bundled_model)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


MAIN = f"{sys.executable} -c 'from dsv3c.compiler.cli import main; main()'"
FULL = "error: cannot write the output: No space left on device\n  hint: make room, or send it elsewhere\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("targets > /dev/full", 1, FULL),
        ("targets --json > /dev/full", 1, FULL),
        ("inspect MODEL > /dev/full", 1, FULL),
        ("plan MODEL 2> /dev/full > /dev/full", 1, ""),
        ("inspect nowhere 2> /dev/full", 1, ""),
        ("bogus 2> /dev/full", 2, ""),
        ("targets >&-", 1, "error: cannot write the output: stdout is closed\n"),
        ("targets 2>&-", 0, ""),
        ("generate x -p - <&-", 1, "error: cannot read the prompt from stdin: it is closed\n"),
        ("--help > /dev/full", 1, "error: "),
    ],
)
def test_output_that_is_lost_is_a_fault(bundled_model: Path, command: str, code: int, says: str) -> None:
    shell = f"{MAIN} {command.replace('MODEL', str(bundled_model))}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.startswith(says) and bool(says) == bool(done.stderr)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path: Path, closed: str) -> None:
    script = (
        "import click\n"
        "from dsv3c.compiler import cli\n"
        "from dsv3c.compiler.cli.program import root\n"
        "@root.command('number')\n"
        "def number():\n"
        f"    with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "        file.write(str(file.fileno() > 2))\n"
        "cli.main()\n"
    )
    (tmp_path / "script.py").write_text(script)
    command = f"{sys.executable} {tmp_path / 'script.py'} number {closed}"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "True"


def test_letters_that_stdout_cannot_show_are_replaced() -> None:
    script = (
        "import click\n"
        "from dsv3c.compiler import cli\n"
        "from dsv3c.compiler.cli.program import root\n"
        "@root.command('say')\n"
        "def say():\n"
        "    click.echo(chr(8220))\n"
        "cli.main()\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-c", script, "say"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, "?\n"), done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_that_ends_the_command_cleans_up(tmp_path: Path, name: str, code: int) -> None:
    script = (
        "import sys, time, click\n"
        "from pathlib import Path\n"
        "from dsv3c.compiler import cli\n"
        "from dsv3c.compiler.cli.program import root\n"
        "from dsv3c.compiler.driver import artifact\n"
        "@root.command('wait')\n"
        "def wait():\n"
        f"    with artifact.writing(Path({str(tmp_path / 'out')!r}), False) as folder:\n"
        "        (folder / 'file').touch()\n"
        "        click.echo('waiting', err=True)\n"
        "        time.sleep(60)\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "wait"], stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "waiting\n"
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    process.send_signal(getattr(signal, name))
    process.send_signal(getattr(signal, name))  # does not interrupt the cleaning up
    assert process.wait(timeout=PATIENCE) == code
    assert process.stderr.read().strip() == "terminated"
    process.stderr.close()
    assert list(tmp_path.iterdir()) == []


def test_a_hangup_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        @click.command("heed")
        def heed() -> None:
            os.kill(os.getpid(), signal.SIGHUP)

        monkeypatch.setitem(root.commands, "heed", heed)
        assert cli.run(["heed"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent differently there")
def test_control_c_as_a_process() -> None:
    script = (
        "import time, click\n"
        "from dsv3c.compiler import cli\n"
        "from dsv3c.compiler.cli.program import root\n"
        "@root.command('wait')\n"
        "def wait():\n"
        "    click.echo('waiting', err=True)\n"
        "    time.sleep(60)\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "wait"], stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE) == 130
    assert process.stderr.read().strip() == "interrupted"
    process.stderr.close()
