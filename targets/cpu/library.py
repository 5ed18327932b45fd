"""From PrimFuncs to one shared library: TVM's LLVM makes the object, a C compiler adds the thread pool and links."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir, tirx

from dsv3c.compiler.options import debug_level
from dsv3c.compiler.tools import run
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.link.platforms import LinkFailed, Platform, find_compiler_for, old_glibc

THREADPOOL = Path(__file__).with_name("threadpool.c")
_SUPPORT = (THREADPOOL, Path(__file__).with_name("calls.c"), Path(__file__).parent / "native" / "guard.c")
PROBE = Path(__file__).with_name("probe.c")
_PIPELINE = "dsv3c_cpu"
_MAGIC = (b"\x7fELF", b"\xcf\xfa\xed\xfe")  # of ELF and of Mach-O


def tvm_target(level: IsaLevel) -> Any:
    """TVM's name for `level`."""
    config: dict[str, Any] = {"kind": "llvm", "mcpu": level.mcpu}
    if level.platform:
        config["mtriple"] = level.platform.triple
    if level.mattr:
        config["mattr"] = list(level.mattr)
    return tvm.target.Target(config)


def _lowering() -> tuple[Any, Any, Any]:
    """The passes our kernels need of TVM's default list, whose simplifiers take seconds on unrolled bodies.

    Kernels come as flat buffers, explicit vectors and unrolled loops; common subexpressions are LLVM's work.
    """
    passes = [
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
    ]
    _, finalize_host, finalize_device = s_tir.pipeline.default_s_tir_pipeline()
    return tvm.ir.transform.Sequential(passes), finalize_host, finalize_device


tirx.compilation_pipeline.register_tir_pipeline(_PIPELINE, _lowering)


def compile_module(module: Any, level: IsaLevel) -> Any:
    """The kernels of an IRModule as TVM's runtime module, which can write an object and show its assembly."""
    return tirx.build(module, target=tvm_target(level), pipeline=_PIPELINE)


def module_of(functions: Mapping[str, Any]) -> Any:
    """The IRModule of PrimFuncs by the names that they get."""
    return tvm.IRModule({name: function.with_attr("global_symbol", name) for name, function in functions.items()})


def show(module: Any, level: IsaLevel) -> None:
    """With DSV3C_DEBUG=4 print it as TVMScript on stderr."""
    if debug_level() >= 4:
        print(f"# {level.name}\n{module.script()}", file=sys.stderr)


def compile_object(functions: Mapping[str, Any], level: IsaLevel, path: Path) -> Path:
    """The object file of PrimFuncs by name. What is made of the same is the same to the byte."""
    module = module_of(functions)
    show(module, level)
    compile_module(module, level).write_to_file(str(path))
    return path


def compile_support(platform: Platform | None, folder: Path, plan: str | None = None) -> list[Path]:
    """The objects of what the libraries of all levels have besides kernels: the thread pool, the caller of kernels, the
    guard. plan: the sha256 of the plan.json that they are for. Raises NoCCompiler, NoCrossCompiler or LinkFailed."""
    compiler = find_compiler_for(platform)
    named = [] if plan is None else [f'-DDSV3C_PLAN="{plan}"']
    objects = support_objects(folder)
    for source, path in zip(_SUPPORT, objects, strict=True):
        _compile(compiler, ["-c", "-pthread", *old_glibc(platform, compiler), *named, str(source)], path)
    return objects


def support_objects(folder: Path) -> list[Path]:
    """Where `compile_support` writes."""
    return [folder / f"{source.stem}.o" for source in _SUPPORT]


def link_library(objects: Sequence[Path], level: IsaLevel, path: Path) -> Path:
    """Link kernels and the objects of `compile_support` with the routines that measure the machine.

    The library exports every kernel under the TVM FFI calling convention, `int dsv3c_threads(int)`, `dsv3c_calls`,
    `dsv3c_plan`, what guard.h has, and the `dsv3c_probe_*` that measure the machine. It needs libtvm_ffi, libm and
    libc. Raises NoCCompiler, NoCrossCompiler or LinkFailed.
    """
    compiler = find_compiler_for(level.platform)
    old = old_glibc(level.platform, compiler)
    shared = [option.format(name=path.name) for option in level.platform.shared] if level.platform else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.o")
        _compile(compiler, ["-c", *level.cflags, str(PROBE)], probe)
        _compile(compiler, ["-shared", *shared, "-pthread", *old, *map(str, (probe, *objects)), "-lm"], path)
    return path


def _compile(compiler: list[str], arguments: list[str], path: Path) -> None:
    flags = ["-O2", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-D_GNU_SOURCE"]
    command = [*compiler, *flags, "-o", str(path), *arguments]
    done = run(command, path)
    if done.returncode != 0 or not _is_code(path):
        output = done.stderr.strip() or f"it ended with {done.returncode} and made no library or object file"
        raise LinkFailed(path=path, command=" ".join(command), output=output)


def _is_code(path: Path) -> bool:
    """Whether a file begins as ELF or Mach-O does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in _MAGIC
