"""The table of weight formats: all that is known of one stands in its row.

What its elements stand for (grids), which of them share a scale (grouping), how they are stored in each layout
(packings) and how weights become codes (rounding) are four things, each in a file of its own, and a row names one of
each. A new format is a new row, and code only where one of the four is new. Kernels ask the row, never its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.formats import float_rounding, mx
from dsv3c.compiler.formats import rounding as methods
from dsv3c.compiler.formats.grids import E2M1, E4M3, NF4, Grid, Integers, PlainFloats
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.nearest import nearest
from dsv3c.compiler.formats.packings import Dense, Elements, Packing, Planes, Signed
from dsv3c.compiler.formats.rounding import Rounding


class UnknownWeightFormat(Dsv3cError):
    message = "unknown weight format {text!r}"
    hint = "{use}; docs/use/formats.md says what each is"

    def __init__(self, text: str) -> None:
        found = nearest(text, (*FORMATS, *ALIASES))
        use = f"use {listed()}"
        super().__init__(text=text, use=use if found is None else f"{found} is the nearest; {use}")


@dataclass(frozen=True)
class WeightFormat:
    """One row; a format is known by its name.

    packings: how it is stored, by the name of each layout that has it. rounding: None for plain floats, which are cast.
    integer_products: products with it take activations rounded to int8; otherwise they take them in float32.
    keeps_fp8: its rounding is given weights that a checkpoint has in fp8 as they are there, to keep codes and scales.
    head, embedding: the formats that go with it where none are chosen; empty: itself.
    """

    name: str
    grid: Grid | PlainFloats = field(compare=False, repr=False)
    packings: Mapping[str, Packing] = field(compare=False, repr=False)
    grouping: Grouping = field(default=Grouping(), compare=False, repr=False)
    rounding: Rounding | None = field(default=None, compare=False, repr=False)
    integer_products: bool = field(default=False, compare=False, repr=False)
    keeps_fp8: bool = field(default=False, compare=False, repr=False)
    head: str = field(default="", compare=False, repr=False)
    embedding: str = field(default="", compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> WeightFormat:
        """The format named `text`, e.g. "bfloat16", "int8", "int4-g32-asym"."""
        name = ALIASES.get(text, text)
        if name not in FORMATS:
            raise UnknownWeightFormat(text)
        return FORMATS[name]

    @classmethod
    def of_type(cls, dtype: str) -> WeightFormat:
        """The format whose weights have the element type `dtype` in the IR."""
        return _BY_TYPE[dtype]

    def __str__(self) -> str:
        return self.name

    @property
    def element(self) -> str | None:
        """IR dtype of the numbers, where these are stored as they are; None for codes."""
        return self.grid.element if isinstance(self.grid, PlainFloats) else None

    @property
    def has_codes(self) -> bool:
        """Whether it stores codes with scales, not plain floats."""
        return self.element is None

    @property
    def codes(self) -> Grid:
        """The grid, of a format that has codes."""
        assert not isinstance(self.grid, PlainFloats), f"{self} is no format of codes"
        return self.grid

    @property
    def type_name(self) -> str:
        """What the IR calls the element type of such a weight."""
        return self.element or self.name

    @property
    def zero_point(self) -> int:
        """The code that stands for 0 where groups have none of their own."""
        return self.codes.zero

    @property
    def largest(self) -> float:
        """The largest magnitude that a code stands for, before its scale."""
        return self.codes.largest(self.grouping.zero is not None)

    def padded_k(self, k: int) -> int:
        """K of the codes, rounded up to whole groups."""
        return self.grouping.padded_k(k)

    def scale_groups(self, k: int) -> int:
        """KG, the number of scales of one output channel."""
        return self.grouping.count(k)

    def bits_per_weight(self, k: int = 1024) -> float:
        """Stored bits a weight, scales and zero points included, for an inner size of `k`."""
        if not self.has_codes:
            return float(self.grid.bits)
        beside = _BITS[self.grouping.scale] + (_BITS[self.grouping.zero] if self.grouping.zero else 0)
        return self.grid.bits + beside * self.scale_groups(k) / self.padded_k(k)


GROUPS = (16, 32, 64, 128)
_BITS = {"f32": 32, "f16": 16, "e8m0": 8, "u8": 8}
# How integers of so many bits are stored; ONNX Runtime has operators for 8, 4 and 2.
_INTEGERS: Mapping[int, Mapping[str, Packing]] = {
    8: {"rows16": Planes((8,)), "nbits": Dense(8)},
    6: {"rows16": Planes((4, 2))},
    5: {"rows16": Planes((4, 1))},
    4: {"rows16": Planes((4,)), "nbits": Dense(4)},
    3: {"rows16": Planes((2, 1))},
    2: {"rows16": Planes((2,)), "nbits": Dense(2)},
}


def _plain(name: str, element: str, together: int = 1) -> WeightFormat:
    return WeightFormat(name, PlainFloats(element), {"rows16": Elements(together), "rows": Elements()})


def _integers(bits: int) -> Iterator[WeightFormat]:
    """Each grouping, with the grid's zero and with zeros of their own. A channel of int8 decodes alone."""
    channel = "int8" if bits == 8 else f"int{bits}-channel"
    groupings = {channel: Grouping(), f"int{bits}-tensor": Grouping(per_tensor=True)}
    groupings |= {f"int{bits}-g{size}": Grouping(size, "f16") for size in GROUPS}
    for name, grouping in groupings.items():
        for zero, tail in ((None, ""), ("u8", "-asym")):
            yield WeightFormat(
                name + tail,
                Integers(bits, lowest=1 if bits == 8 and not zero else 0),
                {**_INTEGERS[bits], **({"rows": Signed()} if name + tail == "int8" else {})},
                replace(grouping, zero=zero),
                methods.nearest,
                integer_products=True,
                head="int8",
                embedding="bfloat16",
            )


def _nf4(size: int) -> WeightFormat:
    return WeightFormat(
        f"nf4-g{size}",
        NF4(),
        {"rows16": Planes((4,))},
        Grouping(size, "f16"),
        float_rounding.nearest_float,
        integer_products=True,
        head="int8",
        embedding="bfloat16",
    )


_ROWS = (
    _plain("float32", "f32"),
    _plain("float16", "f16"),
    _plain("bfloat16", "bf16", together=2),
    WeightFormat(
        "fp8",
        E4M3(),
        {"rows16": Planes((8,))},
        Grouping(128, "f32"),
        methods.fp8_blocks,
        keeps_fp8=True,
        head="bfloat16",
        embedding="bfloat16",
    ),
    *(row for bits in _INTEGERS for row in _integers(bits)),
    WeightFormat(
        "mxfp4",
        E2M1(),
        {"rows16": Planes((4,))},
        Grouping(mx.GROUP, "e8m0"),
        float_rounding.nearest_float,
        integer_products=True,
        head="int8",
        embedding="bfloat16",
    ),
    *map(_nf4, GROUPS),
)

FORMATS: Mapping[str, WeightFormat] = {row.name: row for row in _ROWS}
ALIASES = {"int8-channel": "int8", "int8-channel-asym": "int8-asym"}
_BY_TYPE = {row.type_name: row for row in _ROWS}


_INTEGER_NAME, _GROUP = re.compile(r"int(\d+)(-.+)"), re.compile(r"-g(\d+)")


def listed(names: Iterable[str] | None = None) -> str:
    """The names of formats, by default of all, in one line; those that differ in the group alone are one.

    So are integers that differ in bits alone, if all kinds of them have the same.
    """
    chosen = list(FORMATS if names is None else names)
    groups = sorted({int(size) for name in chosen for size in _GROUP.findall(name)})
    families = list(dict.fromkeys(_GROUP.sub("-gG", name) for name in chosen))
    full_names = {name: alias for alias, name in ALIASES.items()}
    kinds: dict[str, set[int]] = {}
    for name in families:
        if match := _INTEGER_NAME.fullmatch(full_names.get(name, name)):
            kinds.setdefault(match[2], set()).add(int(match[1]))
    bits = next(iter(kinds.values()), set())
    several = len(bits) > 1 and all(each == bits for each in kinds.values())
    if several:
        joined = (name if name in full_names else _INTEGER_NAME.sub(r"intB\2", name) for name in families)
        families = list(dict.fromkeys(joined))
    if not families:
        return "none"
    *first, last = families
    line = f"{', '.join(first)} or {last}" if first else last
    where = [f"B one of {', '.join(map(str, sorted(bits, reverse=True)))}"] if several else []
    where += [f"G one of {', '.join(map(str, groups))}"] if groups else []
    return f"{line} with {' and '.join(where)}" if where else line
