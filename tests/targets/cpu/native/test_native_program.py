"""dsv3c-run, and what the library says of files, CPUs and memory that are not as they should be."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.runtime.artifact.artifact import verify
from dsv3c.runtime.devices.cpu.features import all_cpu_flags
from dsv3c.targets.arm.levels import LEVELS as ARM
from dsv3c.targets.cpu import native
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.link.platforms import find_c_compiler
from dsv3c.targets.x86.levels import LEVELS as X86
from tests.targets.cpu.native.binding import Failure, Model
from tests.targets.cpu.native.conftest import USABLE

PROMPT = "Once upon a time, »Hans« ate 12 apples…"
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def run(folder: Path) -> Run:
    def call(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        program = str(folder / "native" / "dsv3c-run")
        return subprocess.run([program, *arguments], input=stdin, capture_output=True, check=False)

    return call


def test_the_text_is_that_of_the_python_runtime(folder: Path, run: Run) -> None:
    with runtime.load(folder) as model:
        expected = model.generate(PROMPT, seed=5, max_new_tokens=80).text
        greedy = model.generate(PROMPT, temperature=0, max_new_tokens=30)
    done = run("-p", PROMPT, "--seed", "5", "-n", "80")
    assert (done.returncode, done.stdout.decode()) == (0, PROMPT + expected + "\n")
    assert b"80 tokens at" in done.stderr
    done = run("-p", "-", "--temperature", "0", "-n", "30", "--json", stdin=PROMPT.encode())
    assert json.loads(done.stdout)["token_ids"] == list(greedy.token_ids)


def test_what_is_refused_is_not_printed(run: Run) -> None:
    done = run("-p", "Once upon a time", "--context", "1")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"the prompt is longer than the context" in done.stderr


def test_ids_behind_a_zero_byte_are_not_dropped(run: Run) -> None:
    done = run("--ids", "-", "-n", "1", stdin=b"1 2\x00 3")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"not a list of token ids" in done.stderr


def test_a_limit_of_file_sizes_is_told(folder: Path) -> None:
    program = folder / "native" / "dsv3c-run"
    done = subprocess.run(["sh", "-c", f"ulimit -f 0; '{program}' --ids 1 -n 1"], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"dsv3c-run: ")


def test_the_bos_can_be_left_out_and_a_byte_order_mark_is_no_text(folder: Path, run: Run) -> None:
    with runtime.load(folder) as model:
        ids, plain = model.tokenizer.encode("Once"), model.tokenizer.encode("Once", add_bos=False)
    assert ids == [0, *plain]

    def prompt_ids(*arguments: str, stdin: bytes = b"") -> list[int]:
        return json.loads(run(*arguments, "-n", "1", "--json", stdin=stdin).stdout)["prompt_ids"]

    assert prompt_ids("-p", "Once") == prompt_ids("-p", "<｜begin▁of▁sentence｜>Once") == ids
    assert prompt_ids("-p", "Once", "--no-bos") == plain
    assert prompt_ids("-p", "-", stdin=b"\xef\xbb\xbfOnce") == ids


def test_the_program_finds_its_artifact_from_anywhere(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder / "native" / "dsv3c-run")
    done = subprocess.run([str(link), "-p", "A", "-n", "1"], capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 0


def test_ids_in_and_out(folder: Path, run: Run) -> None:
    with runtime.load(folder, threads=1) as model:
        expected = model.generate([0, 17, 42], temperature=0, max_new_tokens=12)
    done = run("--ids", "0 17,42", "--show-ids", "--temperature", "0", "-n", "12", "-j", "1")
    assert done.stdout.decode().split() == [str(token) for token in expected.token_ids]
    done = run("--ids", "-", "--json", "--temperature", "0", "-n", "12", "-j", "1", stdin=b"0\n17 42\n")
    report = json.loads(done.stdout)
    assert (report["token_ids"], report["prompt_ids"]) == (list(expected.token_ids), [0, 17, 42])
    assert (report["finish_reason"], report["threads"]) == ("length", 1)


def test_logits_of_each_drawn_token_are_written(folder: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "logits"
    done = run("--ids", "0 17 42", "--temperature", "0", "-n", "3", "--json", "-j", "1", "--logits", str(path))
    tokens = json.loads(done.stdout)["token_ids"]
    rows = np.fromfile(path, np.float32).reshape(3, -1)
    with runtime.load(folder, threads=1) as model:
        assert rows.argmax(axis=1).tolist() == tokens
        assert np.array_equal(rows[0], model.logits([0, 17, 42])[-1])


def test_the_end_of_an_answer_ends_it(folder: Path, run: Run) -> None:
    anything = {"temperature": 1e6, "top_p": 1.0, "max_new_tokens": 200}  # the model itself hardly ever ends
    with runtime.load(folder) as model:
        answers = ((seed, model.generate([0, 1], seed=seed, **anything)) for seed in range(100))
        seed, expected = next((seed, answer) for seed, answer in answers if answer.finish_reason == "stop")
    command = ("--ids", "0 1", "--seed", str(seed), "-n", "200", "--temperature", "1e6", "--top-p", "1", "--json")
    report = json.loads(run(*command).stdout)
    assert (report["finish_reason"], report["token_ids"]) == ("stop", list(expected.token_ids))
    report = json.loads(run(*command, "--ignore-eos").stdout)
    assert (report["finish_reason"], len(report["token_ids"])) == ("length", 200)


def test_what_is_asked_for_is_what_the_python_runtime_gives(folder: Path, run: Run) -> None:
    options = {
        "max_new_tokens": "40", "seed": "3", "top_k": "50", "top_p": "0.98", "min_p": "0.001", "typical_p": "0.95",
        "repetition_penalty": "1.1", "frequency_penalty": "0.2", "presence_penalty": "-0.1", "temperature": "1.1",
        "no_repeat_ngram_size": "4", "min_new_tokens": "5", "min_length": "30",
    }  # fmt: skip
    lists = {"suppress_tokens": [272, 16], "eos_token_id": [1, 13], "bad_words_ids": [[14], [273, 5]]}
    command = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    command += ["--suppress-tokens", "272 16", "--eos-token-id", "1,13", "--stop", "xyz", "--stop", "the"]
    command += ["--bad-words-ids", "14", "--bad-words-ids", "273 5", "--logit-bias", "11=-1.5", "--logit-bias", "20=2"]
    with runtime.load(folder) as model:
        params = {name: float(value) if "." in value else int(value) for name, value in options.items()}
        expected = model.generate(PROMPT, stop=("xyz", "the"), logit_bias={11: -1.5, 20: 2}, **params, **lists)
    for kind in ("off", "ngram", "mtp"):
        done = run("-p", PROMPT, *command, "--speculate", kind)
        assert (done.returncode, done.stdout.decode()) == (0, PROMPT + expected.text + "\n")


def test_a_default_gives_way_to_what_is_asked_for(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    plan = copy / "native" / "src" / "plan.c"
    text = plan.read_text(encoding="utf-8")
    plan.write_text(text.replace(".min_new_tokens = 0", ".min_new_tokens = 9"), encoding="utf-8")
    native.build(plan.parent, copy / "native")
    done = subprocess.run([copy / "native" / "dsv3c-run", "--ids", "5", "-n", "3"], capture_output=True, check=False)
    assert (done.returncode, done.stderr.startswith(b"3 tokens")) == (0, True)


def test_the_context_ends_an_answer(run: Run) -> None:
    report = json.loads(run("--ids", "0 1 2", "--context", "10", "-n", "100", "--json", "--ignore-eos").stdout)
    assert (report["finish_reason"], len(report["token_ids"])) == ("length", 7)
    done = run("--ids", "0 1 2", "--context", "2")
    assert (done.returncode, done.stderr) == (1, b"dsv3c-run: the prompt is longer than the context\n")


WRONG_USAGE = (
    (),
    ("-p", "a", "--ids", "1"),
    ("--nonsense",),
    ("-p", "a", "-n", "0"),
    ("-p", "a", "--temperature", "warm"),
    ("-p", "a", "--top-p", "0"),
    ("-p", "a", "--seed", "-1"),
    ("--ids", "1 two"),
    ("--ids", "1;2"),
    ("--ids", "-1"),
    ("--ids", "1-0"),
    ("--ids", "1+2"),
    ("--ids", "+1"),
    ("--ids", "99999999999999999999"),
    ("-p", "a", "-j", "257"),
    ("-p", "a", "--numa", "2"),
    ("-p", "a", "one", "two"),
    ("-p", "a", "--stop", ""),
    ("-p", "a", "--speculate", "luck"),
    ("-p", "a", "--logit-bias", "5"),
    ("-p", "a", "--logit-bias", "5=1", "--logit-bias", "5=2"),
    ("-p", "a", "--bad-words-ids", ""),
    ("-p", "a", "--max-time", "0"),
    ("-p", "a", "--system", "b"),
    ("--ids", "1", "--chat"),
    ("--ids", "1", "--no-bos"),
)


@pytest.mark.parametrize("arguments", WRONG_USAGE, ids=" ".join)
def test_wrong_usage(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (("--ids", "1 5000"), b"", b"token id 5000 at position 1 is not in 0..2047"),
        (("--ids", "-"), b"\n", b"the prompt has no tokens"),
        (("-p", "-"), b"a\xff", b"the text is not UTF-8"),
        (("--ids", "1", "--eos-token-id", "5000"), b"", b"eos_token_id: token id 5000 is not in 0..2047"),
        (("--ids", "1", "--suppress-tokens", "5000"), b"", b"suppress_tokens: token id 5000 is not in 0..2047"),
        (("-p", "a", "/nonexistent"), b"", b"cannot open /nonexistent/weights.safetensors: No such file or directory"),
    ],
)
def test_faults_of_the_input(run: Run, arguments: tuple[str, ...], stdin: bytes, message: bytes) -> None:
    done = run(*arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (1, b"dsv3c-run: " + message + b"\n")


def test_each_call_takes_null_without_harm(folder: Path, tmp_path: Path) -> None:
    source, native_folder = Path(__file__).with_name("null_driver.c"), folder / "native"
    command = [*find_c_compiler(), "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", native_folder, source]
    linked = ["-L", native_folder, "-ldsv3c_model", f"-Wl,-rpath,{native_folder}", "-o", tmp_path / "driver"]
    subprocess.run([*command, *linked], check=True)
    done = subprocess.run([tmp_path / "driver", folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_example_of_the_documentation_runs(folder: Path, tmp_path: Path) -> None:
    page = (native.SOURCES.parents[2] / "docs" / "use" / "c.md").read_text(encoding="utf-8")
    source = page.partition("```c\n")[2].partition("```")[0]
    (tmp_path / "app.c").write_text(source, encoding="utf-8")
    (tmp_path / "model").symlink_to(folder)
    arguments = source.partition("// cc app.c ")[2].partition("\n")[0].replace("$PWD", str(tmp_path)).split()
    command = [*find_c_compiler(), "-Wall", "-Wextra", "-Werror", "app.c", "-o", "app", *arguments]
    subprocess.run(command, check=True, cwd=tmp_path)
    done = subprocess.run(["./app"], capture_output=True, text=True, check=False, cwd=tmp_path)
    with runtime.load(folder) as model:
        expected = model.generate("Once upon a time", seed=7, max_new_tokens=100).text
    assert (done.returncode, done.stdout) == (0, expected)


@pytest.mark.needs("gpp")
def test_the_header_is_c_plus_plus_too(tmp_path: Path) -> None:
    (tmp_path / "app.cc").write_text('#include "dsv3c.h"\nint main() { return dsv3c_error() == nullptr; }\n')
    flags = ("-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only")
    subprocess.run(["g++", *flags, "-I", native.SOURCES, tmp_path / "app.cc"], check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("redirected", "says"),
    [
        (">/dev/full", b"dsv3c-run: cannot write the output: No space left on device\n"),
        ("--json >/dev/full", b"dsv3c-run: cannot write the output: No space left on device\n"),
        ("--show-ids >/dev/full", b"dsv3c-run: cannot write the output: No space left on device\n"),
        ("--help >/dev/full", b"dsv3c-run: cannot write the output: No space left on device\n"),
        (">/dev/null 2>/dev/full", b""),
        (">&-", b"dsv3c-run: cannot write the output: Bad file descriptor\n"),
        ("--logits LOGITS >&-", b"dsv3c-run: cannot write the output: Bad file descriptor\n"),
        ("-p - <&-", b"dsv3c-run: cannot read the input: Bad file descriptor\n"),
    ],
)
def test_output_that_is_lost_is_a_fault(folder: Path, tmp_path: Path, redirected: str, says: bytes) -> None:
    command = f"{folder}/native/dsv3c-run -p Once -n 3 {redirected.replace('LOGITS', str(tmp_path / 'logits'))}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, says)
    if "LOGITS" in redirected:
        assert (tmp_path / "logits").stat().st_size % 8192 == 0, "no text between the logits"


def test_a_pipe_that_is_closed_early_ends_it_quietly(folder: Path) -> None:
    command = [str(folder / "native" / "dsv3c-run"), "-p", "Once", "-n", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.needs("ldd")
def test_only_the_c_library_is_needed(folder: Path) -> None:
    for name in ("libdsv3c_model.so", "dsv3c-run"):
        done = subprocess.run(["ldd", str(folder / "native" / name)], capture_output=True, text=True, check=True)
        needed = {line.split()[0].rpartition("/")[2].split(".")[0] for line in done.stdout.splitlines()}
        assert needed <= {"linux-vdso", "libdsv3c_model", "libm", "libc", "libpthread", "libdl", "ld-linux-x86-64"}


def test_the_manifest_lists_what_was_added(folder: Path) -> None:
    verify(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    names = [name.removeprefix("native/") for name in manifest["files"] if name.startswith("native/")]
    assert {"dsv3c.h", "libdsv3c_model.so", "dsv3c-run", "tokenizer.bin", "src/plan.c", "src/run.c"} <= set(names)


# ---- files and machines that are not as they should be


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


CHECKED = ("weights.safetensors", "native/tokenizer.bin", *(f"kernels/{level}.so" for level in USABLE[-1:]))


@pytest.mark.parametrize("name", CHECKED)
def test_files_are_checked(copy: Path, name: str) -> None:
    path = copy / name
    content = path.read_bytes()
    changed = bytearray(content)
    changed[100] ^= 1
    for damaged, status in ((content[:-1], "FILE_DAMAGED"), (bytes(changed), "FILE_DAMAGED"), (None, "FILE_MISSING")):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(Failure) as failed:
            Model(copy)
        assert failed.value.status == status
        assert name in failed.value.message


def test_a_folder_is_no_file(copy: Path) -> None:
    (copy / "weights.safetensors").unlink()
    (copy / "weights.safetensors").mkdir()
    with pytest.raises(Failure, match=r"FILE_MISSING: weights\.safetensors is not a regular file"):
        Model(copy)


def test_a_level_can_be_forced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for level in USABLE:
        monkeypatch.setenv("DSV3C_ISA", level)
        model = Model(folder)
        assert model.info.level.decode() == level
        model.close()
    monkeypatch.setenv("DSV3C_ISA", "x86-64-v9")
    with pytest.raises(Failure, match="ISA_UNKNOWN: DSV3C_ISA names the level x86-64-v9"):
        Model(folder)
    monkeypatch.delenv("DSV3C_ISA")
    needed = next(level for level in ARM + X86 if level.name == USABLE[0]).requires[-1]
    monkeypatch.setenv("DSV3C_WITHOUT", f"{needed}, avx512vnni ")
    with pytest.raises(Failure, match=f"ISA_UNKNOWN: DSV3C_WITHOUT names avx512vnni; .* ask for: .*{needed}"):
        Model(folder)
    monkeypatch.setenv("DSV3C_WITHOUT", f", {needed} ")
    with pytest.raises(Failure, match=f"ISA_UNSUPPORTED: DSV3C_WITHOUT names {needed}, which the level {USABLE[0]}"):
        Model(folder)
    monkeypatch.delenv("DSV3C_WITHOUT")
    model = Model(folder)
    assert model.info.level.decode() == USABLE[-1]
    model.close()


OPTIONS = {
    "threads": (257, "BAD_ARGUMENT"),
    "context": (2049, "BAD_ARGUMENT"),
    "max_batch": (9, "BAD_ARGUMENT"),
    "numa": (2, "BAD_ARGUMENT"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_out_of_range(folder: Path, name: str) -> None:
    value, status = OPTIONS[name]
    for wrong in (value, -1):
        with pytest.raises(Failure, match=f"{status}: {name} is {wrong}"):
            Model(folder, **{name: wrong})


def test_a_kernel_says_what_it_refuses(copy: Path) -> None:
    """A plan that hands over int32 where the kernel was compiled for float32."""
    plan = copy / "native" / "src" / "plan.c"
    text = plan.read_text(encoding="utf-8")
    first = text.index("{IN_ARENA, 2, 32, ")
    plan.write_text(text[:first] + "{IN_ARENA, 0, " + text[first + len("{IN_ARENA, 2, ") :], encoding="utf-8")
    native.build(copy / "native" / "src", copy / "native")
    command = [str(copy / "native" / "dsv3c-run"), "--ids", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("dsv3c-run: the kernel take_0 failed: TypeError: ")
    assert "float32" in done.stderr


def test_memory_that_is_refused(folder: Path) -> None:
    program = str(folder / "native" / "dsv3c-run")
    limited = ["bash", "-c", 'ulimit -v 20000; exec "$0" -p A', program]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the system refused" in done.stderr or "cannot be mapped" in done.stderr


@pytest.mark.thorough
def test_the_sources_are_clean_under_sanitizers(copy: Path) -> None:
    """Built from what the artifact brings along, without a warning."""
    folder = copy / "native"
    flags = ("-Werror", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    native.build(folder / "src", folder, flags=flags)
    for arguments, status in (
        (("-p", PROMPT * 40, "-n", "20", "--seed", "1", "--top-k", "50"), 0),
        (("--ids", "1 2 3", "-n", "20", "--temperature", "0", "--json", "--repetition-penalty", "1.2"), 0),
        (("-p", "the king " * 9, "-n", "30", "--temperature", "0", "--speculate", "ngram", "--stop", "never"), 0),
        (("-p", PROMPT * 40, "-n", "20", "--seed", "1", "--speculate", "mtp", "--typical-p", "0.9"), 0),
        (("--ids", "1", "-n", "9", "--bad-words-ids", "1 2", "--suppress-tokens", "3", "--logit-bias", "4=-inf"), 0),
        (("-p", "a", "--chat"), 1),
        (("--ids", "1 5000"), 1),
        (("-p", "a", str(copy / "native")), 1),
        (("-p", "a", "--context", "1", "-n", "1"), 1),
    ):
        program = [str(folder / "dsv3c-run"), *arguments]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert "Sanitizer" not in done.stderr
        assert "runtime error" not in done.stderr


SOURCES_OF_CPU = """
#include <stdio.h>
#include "internal.h"
int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) if (cpu_has(argv[i])) puts(argv[i]);
  return 0;
}
"""


@pytest.mark.parametrize("level", (*X86, *ARM), ids=lambda level: level.name)
def test_what_each_level_requires_is_known(level: IsaLevel) -> None:
    """A feature that cpu.c does not know is one that no CPU has: the level would never be taken, silently."""
    text = (native.SOURCES / "cpu.c").read_text(encoding="utf-8")
    assert {name for name in level.requires if f'{{"{name}", ' not in text} == set()


def test_the_features_of_the_cpu_are_those_that_the_system_reports(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(SOURCES_OF_CPU, encoding="utf-8")
    files = [str(tmp_path / "main.c"), *(str(native.SOURCES / name) for name in ("cpu.c", "error.c"))]
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", "-I", str(native.SOURCES), "-o", str(tmp_path / "cpu"), *files]
    subprocess.run(command, check=True)
    text = (native.SOURCES / "cpu.c").read_text(encoding="utf-8")
    known = [name for name in text.split('"') if f'{{"{name}", ' in text.partition("#elif")[0]]
    done = subprocess.run([str(tmp_path / "cpu"), *known, "nonsense"], capture_output=True, text=True, check=True)
    assert len(known) > 15
    assert set(done.stdout.split()) == set(known) & all_cpu_flags()
