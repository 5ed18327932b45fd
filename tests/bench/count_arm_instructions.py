"""Instructions of the inner loops of ARM's integer products, by level and format: what a board could reach at most.

    python -m tests.bench.count_arm_instructions [--formats int4-g32,int8,…]

Reads the assembly of a matrix product. "many" is the loop over several activation rows, which reads weights once for
all of them, "one" that over a single row. Products an instruction: of the loop, beside those of the multiplication
alone; then the share that the multiplications have of the loop's instructions for the vector units.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.arm.levels import LEVELS
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.cpu.library import compile_module
from dsv3c.targets.link.platforms import ARM_LINUX

PRODUCTS = {"smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8, "sdot": 16, "usdot": 16, "usmmla": 32}
FORMATS = "int8,int8-g32,int6-g32,int5-g32,int4-g32,int3-g32,int2-g16,mxfp4,nf4-g64"
SIZE = 2048  # of the weight, both ways

_LABEL = re.compile(r"(\.?[A-Za-z_$][\w.$]*):")
_INSTRUCTION = re.compile(r"\t([a-z][\w.]*)\s*(.*)")
_BRANCHES = ("b", "cbz", "cbnz", "tbz", "tbnz")


@dataclass(frozen=True)
class Loop:
    """Its instructions, each with its operands."""

    body: Sequence[tuple[str, str]]

    @property
    def products(self) -> int:
        return sum(PRODUCTS.get(name, 0) for name, _ in self.body)

    @property
    def multiplications(self) -> int:
        return sum(name in PRODUCTS for name, _ in self.body)

    @property
    def vector(self) -> int:
        """Instructions for the vector units: loads and stores go elsewhere."""
        moves = ("ld", "st", "prfm")
        return sum(not name.startswith(moves) and bool(re.search(r"\b[vqds]\d", rest)) for name, rest in self.body)

    @property
    def prefetches(self) -> int:
        return sum(name == "prfm" for name, _ in self.body)


def innermost_loops(assembly: str) -> Iterator[Loop]:
    """Those without another in them: from the target of a branch back to the branch."""
    labels: dict[str, int] = {}
    body: list[tuple[str, str]] = []
    spans: list[tuple[int, int]] = []
    for line in assembly.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(body)
        elif found := _INSTRUCTION.match(line):
            name, rest = found[1], found[2]
            target = rest.split(",")[-1].strip()
            if name.split(".")[0] in _BRANCHES and target in labels:
                spans.append((labels[target], len(body)))
            body.append((name.split(".")[0], rest))
    for start, end in spans:
        if not any(start <= other and last <= end for other, last in spans if (other, last) != (start, end)):
            yield Loop(body[start : end + 1])


def loops(level: IsaLevel, format: WeightFormat) -> dict[str, Loop]:
    """The loop over many rows, and that over one."""
    import tvm

    kernel = build(Linear(Rows(64), SIZE, SIZE, format), level).with_attr("global_symbol", "linear")
    assembly = compile_module(tvm.IRModule({"linear": kernel}), level).inspect_source("asm")
    found = [loop for loop in innermost_loops(assembly) if loop.products]
    return {
        "many": max(found, key=lambda loop: loop.products / len(loop.body)),
        "one": max(found, key=lambda loop: loop.prefetches / loop.products),  # which fetches a line for a row alone
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=FORMATS)
    formats = parser.parse_args().formats.split(",")
    print("| level | format | rows | instructions | products an instruction | of a multiplication | vector units |")
    print("|---|---|---|---|---|---|---|")
    for level in LEVELS:
        for name in formats:
            for rows, loop in loops(replace(level, platform=ARM_LINUX), WeightFormat.parse(name)).items():
                most = loop.products / loop.multiplications
                share = loop.multiplications / loop.vector
                rate = loop.products / len(loop.body)
                print(f"| {level.name} | {name} | {rows} | {len(loop.body)} | {rate:.1f} | {most:.0f} | {share:.0%} |")


if __name__ == "__main__":
    main()
