"""MXFP4 as gpt-oss and transformers store it: X in `X_blocks` u8 [..., N, K/32, 16] and `X_scales` u8 [..., N, K/32].

github.com/huggingface/transformers, src/transformers/integrations/mxfp4.py (`convert_moe_packed_tensors`); the numbers:
"OCP Microscaling Formats (MX) Specification" version 1.0. A byte has two numbers of e2m1, the first in its low half; a
scale is the exponent of a power of two plus 127. X is a fused tensor of experts, or a weight of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint.errors import LeftOutError, ScaleValueError
from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.quantised import names
from dsv3c.compiler.checkpoint.quantised.weight import (
    Coded,
    CodedWeight,
    Stored,
    Weight,
    group_index,
    required,
    tensor_of,
    unpack,
)
from dsv3c.compiler.checkpoint.stored import StoredTensor
from dsv3c.compiler.formats import coded
from dsv3c.compiler.formats.keeping import Coding

GROUP = 32
CODING = Coding(coded.E2M1, 4, GROUP)


@dataclass(frozen=True)
class Mxfp4:
    config: ConfigFields
    left_out: tuple[str, ...]

    @classmethod
    def parse(cls, config: ConfigFields) -> Mxfp4:
        return cls(config, names.modules(config, "modules_to_not_convert"))

    def find(self, name: str, shape: tuple[int, ...], stored: Stored) -> Weight | None:
        if f"{name}_blocks" not in stored or not 2 <= len(shape) <= 3:
            return None
        *stack, rows, columns = shape
        groups = columns // GROUP if columns % GROUP == 0 else -1
        lead = (*stack, rows, groups)
        codes = tensor_of(stored, f"{name}_blocks", [(*lead, GROUP // 2)], ["U8"])
        assert codes is not None
        scale = required(stored, codes, f"{name}_scales", [lead], ["U8", "F8_E8M0"])
        module = name.removesuffix(".weight")
        if entry := names.naming(module, self.left_out):
            raise LeftOutError(path=self.config.path, tensor=codes.info.name, module=module, entry=entry)
        read = Reader(codes, scale, columns)
        return CodedWeight((codes, scale), (rows, columns), CODING, read, stack[0] if stack else None)


@dataclass(frozen=True)
class Reader:
    """codes: two in a byte, of rows of `columns`; they may be divided into blocks. scale: exponents."""

    codes: StoredTensor
    scale: StoredTensor
    columns: int

    def __call__(self, expert: int | None) -> Coded:
        codes, scale = (
            tensor.array() if expert is None else tensor.array()[expert] for tensor in (self.codes, self.scale)
        )
        self._check(scale, expert)
        flat = unpack(codes.reshape(len(codes), -1), 4, self.columns)
        return Coded(flat, scale, None, group_index(None, self.columns, GROUP))

    def _check(self, scale: Any, expert: int | None) -> None:
        """Raises ScaleValueError for an exponent that stands for no number."""
        wrong = np.argwhere(scale == 255)
        if not wrong.size:
            return
        position = ([] if expert is None else [expert]) + wrong[0].tolist()
        name, path = self.scale.info.name, self.scale.file.path
        raise ScaleValueError(path=path, tensor=name, found=float("nan"), position=position)
