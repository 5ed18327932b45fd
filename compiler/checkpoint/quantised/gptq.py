"""GPTQ checkpoints as AutoGPTQ and GPTQModel write them.

github.com/AutoGPTQ/AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda.py (`pack`), and
github.com/ModelCloud/GPTQModel, gptqmodel/utils/model.py (`convert_gptq_v1_to_v2_format`). For a linear P of K inputs
and N outputs:

    P.qweight  i32 [K * bits / 32, N]    codes, packed along K
    P.qzeros   i32 [KG, N * bits / 32]   zero points, packed along N; less one, except in `checkpoint_format: gptq_v2`
    P.scales   float [KG, N]
    P.g_idx    i32 [K]                   the group of each input, out of order where `desc_act` is set

Packed numbers follow one another from the lowest bit on, those of 3 bits across words. value = (code - zero) * scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint.errors import LeftOutError, ZeroPointError
from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.quantised import names
from dsv3c.compiler.checkpoint.quantised.weight import (
    Coded,
    CodedWeight,
    Stored,
    Weight,
    group_index,
    required,
    scales,
    tensor_of,
    unpack,
    words,
)
from dsv3c.compiler.checkpoint.stored import StoredTensor
from dsv3c.compiler.formats import coded
from dsv3c.compiler.formats.keeping import Coding

BITS = (2, 3, 4, 8)
MAX_GROUP = 1 << 20
_HEAD = "lm_head"


@dataclass(frozen=True)
class Gptq:
    """group: 0 is one for all inputs. less_one: whether zero points are stored less one."""

    config: ConfigFields
    bits: int
    group: int
    symmetric: bool
    less_one: bool
    scattered: bool
    left_out: tuple[str, ...]

    @classmethod
    def parse(cls, config: ConfigFields) -> Gptq:
        layout = config.choice("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
        return cls(
            config=config,
            bits=width(config, "bits", BITS),
            group=group_size(config),
            symmetric=config.boolean("sym", True),
            less_one=layout == "gptq",
            scattered=config.boolean("desc_act", False),
            left_out=_left_out(config),
        )

    def find(self, name: str, shape: tuple[int, ...], stored: Stored) -> Weight | None:
        module = name.removesuffix(".weight")
        if len(shape) != 2 or f"{module}.qweight" not in stored:
            return None
        (rows, columns), bits = shape, self.bits
        groups = -(-columns // (self.group or columns))
        codes = tensor_of(stored, f"{module}.qweight", [(words(bits, columns), rows)], ["I32"])
        assert codes is not None
        zeros = required(stored, codes, f"{module}.qzeros", [(groups, words(bits, rows))], ["I32"])
        scale = required(stored, codes, f"{module}.scales", [(groups, rows)])
        index = tensor_of(stored, f"{module}.g_idx", [(columns,)], ["I32", "I64"])
        if entry := self._leaves_out(module):
            raise LeftOutError(path=self.config.path, tensor=codes.info.name, module=module, entry=entry)
        read = _Reader(codes, zeros, scale, index, (rows, columns), self)
        scattered = self.scattered and groups > 1 and index is not None
        coding = Coding(coded.INTEGERS, bits, None if scattered and not read.in_order() else self.group, self.symmetric)
        tensors = (codes, zeros, scale, *([] if index is None else [index]))
        return CodedWeight(tensors, (rows, columns), coding, read)

    def _leaves_out(self, module: str) -> str | None:
        if module == _HEAD and self.config.values.get("lm_head") is False:
            return "lm_head is false"
        return next((entry for entry in self.left_out if names.follows(entry.removeprefix("-:"), module)), None)


@dataclass(frozen=True)
class _Reader:
    codes: StoredTensor
    zeros: StoredTensor
    scale: StoredTensor
    index: StoredTensor | None
    shape: tuple[int, int]
    config: Gptq

    def __call__(self, expert: int | None) -> Coded:
        (rows, columns), bits = self.shape, self.config.bits
        codes = unpack(self.codes.array().T, bits, columns)
        zero = unpack(self.zeros.array(), bits, rows).T
        if self.config.less_one:
            zero = self._one_more(zero)
        scale = scales(self.scale).T
        return Coded(codes, scale, zero, group_index(self.index, columns, self.config.group))

    def in_order(self) -> bool:
        """Whether the groups are neighbours. Raises GroupIndexError."""
        columns, size = self.shape[1], self.config.group
        return bool((group_index(self.index, columns, size) == group_index(None, columns, size)).all())

    def _one_more(self, zero: Any) -> Any:
        """Raises ZeroPointError for a zero beyond all codes: what packs zeros of 0 less one spoils their neighbours."""
        highest = (1 << self.config.bits) - 1
        beyond = np.argwhere(zero == highest)
        if beyond.size:
            row, group = beyond[0].tolist()
            name, path = self.zeros.info.name, self.zeros.file.path
            raise ZeroPointError(path=path, tensor=name, found=highest + 1, position=[group, row], highest=highest)
        return zero + np.uint8(1)


def width(config: ConfigFields, key: str, known: tuple[int, ...]) -> int:
    """The bits of a code. Raises MissingConfigKeyError, ConfigValueError."""
    bits = config.integer(key, 1, 64)
    if bits not in known:
        raise config.wrong(key, "one of " + ", ".join(map(str, known)))
    return bits


def group_size(config: ConfigFields) -> int:
    """The inputs that share a scale, 0 for all of them, which is stored as -1."""
    size = config.integer("group_size", -1, MAX_GROUP)
    if size == 0:
        raise config.wrong("group_size", "a size, or -1 for one group of all inputs")
    return max(size, 0)


def _left_out(config: ConfigFields) -> tuple[str, ...]:
    """The patterns of GPTQModel's `dynamic` that leave modules out. Raises UnsupportedConfigError for other ones."""
    rules = config.object("dynamic")
    for pattern, changes in rules.values.items():
        if not pattern.startswith("-:") and changes:
            raise rules.unsupported(pattern, "all matrices must have the same bits and groups")
    return tuple(pattern for pattern in rules.values if pattern.startswith("-:"))
