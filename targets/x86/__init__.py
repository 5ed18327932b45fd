"""x86-64 CPUs: AVX2, AVX-512 and AVX-512 VNNI in one artifact; the runtime picks by CPU features."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3c.compiler.ir import Value
from dsv3c.compiler.target import Emission, Entry


class X86:
    """The x86 target. TVM is imported when the first graph is lowered."""

    name = "x86"
    layout = "rows16"
    integer_activations = True

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        from dsv3c.targets.cpu.emit import scratch_bytes

        return scratch_bytes(value, bounds)

    def emit(self, entries: Mapping[str, Entry], bounds: Mapping[str, int]) -> Emission:
        from dsv3c.targets.cpu.emit import emit
        from dsv3c.targets.x86.levels import LEVELS

        return emit(entries, bounds, LEVELS)


TARGET = X86()
