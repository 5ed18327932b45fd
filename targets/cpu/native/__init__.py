"""The artifact without Python: a C library that runs the plan over the artifact's own kernel libraries, and a program.

native/dsv3c.h              the interface (the contract of every function is there)
native/libdsv3c_model.so    the C files of this folder and the tables of plan.c; needs the C library alone
native/dsv3c-run            text or token ids from the command line
native/tokenizer.bin        tokenizer.json as tables, where its kind is known
native/src/                 what the two were built from
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from dsv3c.compiler.tools import run
from dsv3c.targets.cpu.native.regex import Unsupported
from dsv3c.targets.cpu.native.tables import plan_source
from dsv3c.targets.cpu.native.tokenizer_table import tokenizer_table
from dsv3c.targets.link.platforms import LinkFailed, Platform, find_compiler_for, old_glibc

SOURCES = Path(__file__).parent
PROGRAM = "main.c"
START = "start.c"  # of the program, where that is for old systems
TABLE = "tokenizer.bin"
# Contraction would give sampling other bits than the compiler of another machine does.
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-g0", "-pthread")


def write_native(folder: Path, platform: Platform | None = None) -> tuple[str, ...]:
    """Write `native/` into an artifact folder that has all but the manifest's file table, built for `platform` (None:
    this machine). Returns notes for the user. Raises NoCCompiler, NoCrossCompiler, LinkFailed."""
    native = folder / "native"
    source = native / "src"
    source.mkdir(parents=True)
    for path in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        shutil.copyfile(path, source / path.name)
    shutil.copyfile(SOURCES / "dsv3c.h", native / "dsv3c.h")
    table, notes = _table(folder)
    if table is not None:
        (native / TABLE).write_bytes(table)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (source / "plan.c").write_text(plan_source(folder, manifest), encoding="utf-8")
    build(source, native, platform)
    return notes


def check_native(checkpoint: Path) -> None:
    """What `write_native` would find wrong at the end of a long compilation. Raises TokenizerFormatError."""
    _table(checkpoint)


def build(source: Path, native: Path, platform: Platform | None = None, flags: tuple[str, ...] = ()) -> None:
    """Compile the library and the program of `source` into `native`, for `platform`.

    Raises NoCCompiler, NoCrossCompiler, LinkFailed.
    """
    found = find_compiler_for(platform)
    old = old_glibc(platform, found)
    compiler = [*found, *FLAGS, *old, *flags]
    library = native / f"libdsv3c_model{platform.suffix if platform else '.so'}"
    macos = platform is not None and platform.system == "darwin"
    # Else some linkers note the path at which they found the library, which is not where it will be. Symbolic: it calls
    # itself, and not what the library of another model in the same process has under the same names.
    named = f"-Wl,-install_name,@rpath/{library.name}" if macos else f"-Wl,-soname,{library.name},-Bsymbolic"
    files = [str(path) for path in sorted(source.glob("*.c")) if path.name not in (PROGRAM, START)]
    hidden = ["-shared", "-fPIC", "-fvisibility=hidden", "-DDSV3C_SHARED="]
    _compile([*compiler, *hidden, named, "-o", str(library), *files, "-lm", "-ldl"], library)
    program = native / "dsv3c-run"
    beside = "-Wl,-rpath," + ("@loader_path" if macos else "$ORIGIN")
    linked = [str(source / PROGRAM), "-L", str(native), "-ldsv3c_model", beside]
    start = [str(source / START), "-Wl,--wrap=__libc_start_main"] if "-include" in old else []
    _compile([*compiler, "-o", str(program), *start, *linked], program)


def _table(folder: Path) -> tuple[bytes | None, tuple[str, ...]]:
    """The table of a folder's tokenizer and notes for the user. Raises TokenizerFormatError."""
    if not (folder / "tokenizer.json").exists():
        return None, ()
    config = folder / "tokenizer_config.json"
    content = json.loads(config.read_text(encoding="utf-8-sig")) if config.exists() else {}
    try:
        return tokenizer_table(folder / "tokenizer.json", content), ()
    except Unsupported as error:
        return None, (f"native: takes and prints token ids only, since tokenizer.json has {error}",)


def _compile(command: list[str], path: Path) -> None:
    done = run(command, path)
    if done.returncode != 0:
        raise LinkFailed(path=path, command=" ".join(command), output=done.stderr.strip())
