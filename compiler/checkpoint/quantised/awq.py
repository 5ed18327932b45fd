"""AWQ checkpoints as AutoAWQ writes them, `version: gemm`.

github.com/casper-hansen/AutoAWQ, awq/modules/linear/gemm.py (`from_linear`) and awq/utils/packing_utils.py. For a
linear P of K inputs and N outputs, all packed along N:

    P.qweight  i32 [K, N / 8]     codes
    P.qzeros   i32 [KG, N / 8]    zero points
    P.scales   f16 [KG, N]

Eight numbers of four bits lie in a word from the lowest bits on in the order 0 2 4 6 1 3 5 7.
value = (code - zero) * scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint.errors import LeftOutError
from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.quantised import names
from dsv3c.compiler.checkpoint.quantised.gptq import group_size, width
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
)
from dsv3c.compiler.checkpoint.stored import StoredTensor
from dsv3c.compiler.formats import coded
from dsv3c.compiler.formats.keeping import Coding

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of each of eight numbers in its word
_BITS = 4


@dataclass(frozen=True)
class Awq:
    """group: 0 is one for all inputs."""

    config: ConfigFields
    group: int
    symmetric: bool
    left_out: tuple[str, ...]

    @classmethod
    def parse(cls, config: ConfigFields) -> Awq:
        width(config, "bits", (_BITS,))
        version = config.values.get("version", "gemm")
        if not isinstance(version, str) or version.lower() != "gemm":
            raise config.unsupported("version", "known is gemm")
        symmetric = not config.boolean("zero_point", True)
        return cls(config, group_size(config), symmetric, names.modules(config, "modules_to_not_convert"))

    def find(self, name: str, shape: tuple[int, ...], stored: Stored) -> Weight | None:
        module = name.removesuffix(".weight")
        if len(shape) != 2 or f"{module}.qweight" not in stored:
            return None
        rows, columns = shape
        groups, packed = -(-columns // (self.group or columns)), rows // 8 if rows % 8 == 0 else -1
        codes = tensor_of(stored, f"{module}.qweight", [(columns, packed)], ["I32"])
        assert codes is not None
        zeros = required(stored, codes, f"{module}.qzeros", [(groups, packed)], ["I32"])
        scale = required(stored, codes, f"{module}.scales", [(groups, rows)])
        if entry := names.naming(module, self.left_out):
            raise LeftOutError(path=self.config.path, tensor=codes.info.name, module=module, entry=entry)
        coding = Coding(coded.INTEGERS, _BITS, self.group, self.symmetric)
        return CodedWeight(
            (codes, zeros, scale), (rows, columns), coding, _Reader(codes, zeros, scale, (rows, columns), self.group)
        )


@dataclass(frozen=True)
class _Reader:
    codes: StoredTensor
    zeros: StoredTensor
    scale: StoredTensor
    shape: tuple[int, int]
    group: int

    def __call__(self, expert: int | None) -> Coded:
        columns = self.shape[1]
        group = group_index(None, columns, self.group)
        return Coded(_unpack(self.codes), scales(self.scale).T, _unpack(self.zeros), group)


def _unpack(tensor: StoredTensor) -> Any:
    """u8 [N, rows] of words [rows, N / 8]."""
    words = tensor.array()
    numbers = unpack(words, _BITS, words.shape[1] * 8).reshape(len(words), -1, 8)
    return np.ascontiguousarray(numbers[..., _PLACES].reshape(len(words), -1).T)
