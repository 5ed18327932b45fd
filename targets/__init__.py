"""The targets: one folder each, looked up by name and imported only when one is used.

A target string is `name` or `name:option=value,option=value`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsv3c.compiler.errors import Dsv3cError


@dataclass(frozen=True)
class TargetRow:
    """One row of the table of targets: all that can be said of a target without importing it.

    module: has the target object as its attribute `TARGET`. options: what the target string may set, with one line
    each. needs: what the machine must have to compile for it, by the names that `dsv3c doctor` knows.
    """

    module: str
    summary: str
    options: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetString:
    """A target and the options chosen for it."""

    name: str
    options: Mapping[str, str]

    def choosing(self, option: str, value: str) -> TargetString:
        """The same with one option more. Raises UnknownTargetOption, OptionDiffers where it has another value."""
        entry = _entry(self.name)
        if option not in entry.options:
            raise UnknownTargetOption.of(self.name, entry, option)
        if self.options.get(option, value) != value:
            raise OptionDiffers(target=self, option=option, value=value)
        return TargetString(self.name, {**self.options, option: value})

    def __str__(self) -> str:
        chosen = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{chosen}" if chosen else self.name


# Written out, not discovered: the namespace package `dsv3c` cannot be walked in an editable install.
TABLE: Mapping[str, TargetRow] = {
    "x86": TargetRow(
        module="dsv3c.targets.x86",
        summary="x86-64 CPUs: AVX2, AVX-512, VNNI, bfloat16 and AMX kernels, chosen when the artifact is loaded",
        options={
            "cpu": "take the tuning record of this name from artifacts/tuning  [default: this machine's, if any]",
            "levels": "the kernel levels to build, e.g. x86-64-v3, or x86-64-v3+x86-64-v4  "
            "[default: all, for any x86 CPU]",
        },
        needs=("apache-tvm", "apache-tvm-ffi", "c-compiler"),
    ),
    "arm": TargetRow(
        module="dsv3c.targets.arm",
        summary="AArch64 CPUs: NEON, dot product and matrix product kernels, chosen when the artifact is loaded",
        options={
            "cpu": "leave out what this CPU cannot run, e.g. cortex-a72, cortex-a76, neoverse-n1, apple-m1  "
            "[default: generic, for any]",
            "levels": "the kernel levels to build, e.g. armv8.0, or armv8.0+armv8.6  [default: all that the CPU runs]",
            "os": "linux or macos  [default: linux; macos for CPUs of Apple]",
        },
        needs=("apache-tvm", "apache-tvm-ffi", "arm-linker"),
    ),
    "vulkan": TargetRow(
        module="dsv3c.targets.vulkan",
        summary="GPUs, and CPUs, with a Vulkan 1.2 driver: SPIR-V; uses subgroups, matrices, integer dots if there",
        options={"binding": "MiB of a weight to bind at once, up to 2047  [default: 128, which any device does]"},
        needs=("apache-tvm", "apache-tvm-ffi", "glslc"),
    ),
    "cuda": TargetRow(
        module="dsv3c.targets.cuda",
        summary="NVIDIA GPUs from compute capability 8.0 on: machine code by architecture, PTX for those to come",
        options={
            "arch": "the architectures to compile for, e.g. sm_86, or sm_80+sm_90  "
            "[default: sm_80, sm_86, sm_89, sm_90, sm_100 and sm_120, as far as the compiler knows them]"
        },
        needs=("apache-tvm", "apache-tvm-ffi", "cuda-compiler"),
    ),
    "metal": TargetRow(
        module="dsv3c.targets.metal",
        summary="GPUs of Apple silicon: kernels in the Metal Shading Language, compiled by the Mac at first use",
        needs=("apache-tvm", "apache-tvm-ffi", "macos-linker"),
    ),
    "onnx": TargetRow(
        module="dsv3c.targets.onnx",
        summary="ONNX graphs for ONNX Runtime, with its contrib ops for quantised weights and experts",
        options={
            "provider": "the execution provider the graph is meant for: cpu, cuda or webgpu  [default: cpu]",
            "accuracy_level": "4 rounds what meets MatMulNBits and QMoE to int8, 0 does not  [default: cpu 4, else 0]",
            "experts": "1 makes the experts that tokens visit outputs, for generate --expert-stats  [default: 0]",
        },
        needs=("onnx",),
    ),
}


class UnknownTarget(Dsv3cError):
    message = "unknown target {name!r}"
    hint = "the known targets are {known}; `dsv3c targets` says what each is"


class UnknownTargetOption(Dsv3cError):
    message = "target {name} has no option {option!r}"
    hint = "{known}"

    @classmethod
    def of(cls, name: str, entry: TargetRow, option: str) -> UnknownTargetOption:
        known = ", ".join(entry.options)
        return cls(name=name, option=option, known=f"its options are {known}" if known else "it has no options")


class OptionDiffers(Dsv3cError):
    message = "the target {target} has an option {option!r} of its own, which is not {value!r}"
    hint = "leave one of the two out"


class MalformedTarget(Dsv3cError):
    message = "malformed target {text!r}: {reason}"
    hint = "write name or name:option=value,option=value, e.g. x86"


def available() -> dict[str, TargetRow]:
    """The known targets by name, in the order in which they are shown."""
    return dict(TABLE)


def parse(text: str) -> TargetString:
    """Splits a target string.

    Raises UnknownTarget, UnknownTargetOption, or MalformedTarget for an option without a value or given twice.
    """
    name, _, rest = text.strip().partition(":")
    entry = _entry(name)
    options: dict[str, str] = {}
    for item in rest.split(",") if rest else []:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise MalformedTarget(text=text, reason=f"{item!r} is not option=value")
        if key in options:
            raise MalformedTarget(text=text, reason=f"option {key!r} stands twice")
        if key not in entry.options:
            raise UnknownTargetOption.of(name, entry, key)
        options[key] = value
    return TargetString(name, options)


def get(name: str) -> Any:
    """The object of the target called `name`; imports the target. Raises UnknownTarget."""
    return importlib.import_module(_entry(name).module).TARGET


def configured(text: str) -> Any:
    """The target that a target string names, as its options want it. Raises as `parse`, and as its `configured`."""
    chosen = parse(text)
    return get(chosen.name).configured(chosen.options)


def _entry(name: str) -> TargetRow:
    if name not in TABLE:
        raise UnknownTarget(name=name, known=", ".join(TABLE))
    return TABLE[name]
