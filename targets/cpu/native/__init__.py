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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv3c.compiler.tools import run
from dsv3c.targets.cpu.native.chat_pieces import ChatPieces, chat_pieces
from dsv3c.targets.cpu.native.regex import Unsupported
from dsv3c.targets.cpu.native.tables import plan_source
from dsv3c.targets.cpu.native.tokenizer_table import tokenizer_table
from dsv3c.targets.link.platforms import LinkFailed, Platform, find_compiler_for, old_glibc

SOURCES = Path(__file__).parent
PROGRAM = ("main.c", "options.c")
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
    config = _tokenizer_config(folder)
    table, notes = _table(folder, config)
    chat = chat_pieces(folder, config)
    if table is not None:
        (native / TABLE).write_bytes(table)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (source / "plan.c").write_text(plan_source(folder, manifest, chat), encoding="utf-8")
    build(source, native, platform)
    return (*notes, *_chat_notes(chat, config, folder))


def check_native(checkpoint: Path) -> None:
    """What `write_native` would find wrong at the end of a long compilation. Raises TokenizerFormatError."""
    _table(checkpoint, _tokenizer_config(checkpoint))


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
    files = [str(path) for path in sorted(source.glob("*.c")) if path.name not in (*PROGRAM, START)]
    hidden = ["-shared", "-fPIC", "-fvisibility=hidden", "-DDSV3C_SHARED="]
    _compile([*compiler, *hidden, named, "-o", str(library), *files, "-lm", "-ldl"], library)
    program = native / "dsv3c-run"
    beside = "-Wl,-rpath," + ("@loader_path" if macos else "$ORIGIN")
    linked = [*(str(source / name) for name in PROGRAM), "-L", str(native), "-ldsv3c_model", beside]
    start = [str(source / START), "-Wl,--wrap=__libc_start_main"] if "-include" in old else []
    _compile([*compiler, "-o", str(program), *start, *linked], program)


def _table(folder: Path, config: Mapping[str, Any]) -> tuple[bytes | None, tuple[str, ...]]:
    """The table of a folder's tokenizer and notes for the user. Raises TokenizerFormatError."""
    if not (folder / "tokenizer.json").exists():
        return None, ()
    try:
        return tokenizer_table(folder / "tokenizer.json", config), ()
    except Unsupported as error:
        return None, (f"native: takes and prints token ids only, since tokenizer.json has {error}",)


def _tokenizer_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "tokenizer_config.json"
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8-sig")) if path.exists() else {}
    return content


def _chat_notes(chat: ChatPieces, config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """What chats the program lacks, of a model that is made for chats."""
    if not config.get("chat_template") and not (folder / "chat_template.jinja").exists():
        return ()
    what = "no chats" if chat.head is None else "chats of one question alone"
    return (f"native: has {what}, since {chat.lacks}",) if chat.lacks else ()


def _compile(command: list[str], path: Path) -> None:
    done = run(command, path)
    if done.returncode != 0:
        raise LinkFailed(path=path, command=" ".join(command), output=done.stderr.strip())
