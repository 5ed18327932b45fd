"""Checkpoints in the formats of compressed-tensors, as llm-compressor and Kimi-K2-Thinking have them.

github.com/vllm-project/compressed-tensors, src/compressed_tensors: compressors/pack_quantized (base.py, helpers.py),
naive_quantized/base.py, mxfp4/base.py, quantization/quant_args.py, utils/match.py. For a linear P of K inputs and N
outputs:

    pack-quantized        P.weight_packed i32 [N, K * bits / 32], P.weight_scale, P.weight_shape i64 [2], and with zero
                          points P.weight_zero_point i32 [N * bits / 32, KG], packed along N; with `actorder: group`
                          P.weight_g_idx i32 [K]
    int-quantized         P.weight i8 [N, K], P.weight_scale, P.weight_zero_point i8
    float-quantized       P.weight float8_e4m3 [N, K], P.weight_scale
    mxfp4-pack-quantized  P.weight_packed u8 [N, K / 2], P.weight_scale u8 [N, K / 32], see mxfp4

Packed numbers are signed ones plus 2^(bits - 1), from the lowest bit on. Scales: [N, K / group_size], [N, 1] a channel,
[1] a tensor, or one a block. Scales of activations are not read: ours follow each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint.errors import LeftOutError, TensorDtypeError, TensorShapeError, ZeroPointError
from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.quantised import mxfp4, names
from dsv3c.compiler.checkpoint.quantised.gptq import MAX_GROUP, width
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
from dsv3c.compiler.checkpoint.stored import FLOAT_DTYPES, SCALE_DTYPES, StoredTensor, StoredWeight
from dsv3c.compiler.formats import coded
from dsv3c.compiler.formats.keeping import Coding

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mxfp4-pack-quantized",
           "mixed-precision")  # fmt: skip
STRATEGIES = ("tensor", "channel", "group", "block")
_ANY = "Linear"


@dataclass(frozen=True)
class Scheme:
    """How the weights of some modules are stored. group: columns with a scale in common, 0 for all; block: rows and
    columns of a block, where strategy is block."""

    targets: tuple[str, ...]
    kind: str
    bits: int
    strategy: str
    group: int
    block: tuple[int, int]
    symmetric: bool
    scattered: bool

    @classmethod
    def parse(cls, group: ConfigFields) -> Scheme:
        weights = group.object("weights")
        kind = weights.choice("type", ("int", "float"), "int")
        size = weights.integer("group_size", -1, MAX_GROUP, -1)
        told = weights.has("group_size")
        by_size = "group" if size > 0 else "channel" if told else "tensor"
        strategy = weights.choice("strategy", STRATEGIES, by_size)
        if strategy == "group" and size <= 0:
            raise weights.wrong("group_size", "a size above 0, as the strategy is group")
        return cls(
            targets=names.modules(group, "targets"),
            kind=kind,
            bits=width(weights, "num_bits", (4, 8) if kind == "float" else tuple(range(2, 9))),
            strategy=strategy,
            group=size if strategy == "group" else 0,
            block=_block(weights) if strategy == "block" else (1, 1),
            symmetric=weights.boolean("symmetric", True),
            scattered=weights.values.get("actorder") in ("group", "dynamic", True),
        )

    def groups(self, columns: int) -> int:
        return -(-columns // (self.group or columns))

    def scale_shapes(self, rows: int, columns: int) -> list[tuple[int, ...]]:
        if self.strategy == "tensor":
            return [(1,), (), (1, 1)]
        if self.strategy == "channel":
            return [(rows, 1), (rows,)]
        if self.strategy == "block":
            return [(-(-rows // self.block[0]), -(-columns // self.block[1]))]
        return [(rows, self.groups(columns))]


@dataclass(frozen=True)
class CompressedTensors:
    config: ConfigFields
    schemes: tuple[Scheme, ...]
    ignored: tuple[str, ...]

    @classmethod
    def parse(cls, config: ConfigFields) -> CompressedTensors:
        if config.values.get("format", "mixed-precision") not in FORMATS:
            raise config.unsupported("format", "known are " + ", ".join(FORMATS))
        for key, harmless in (("sparsity_config", "dense"), ("transform_config", None)):
            other = config.object(key)
            if other.values and (harmless is None or other.values.get("format") != harmless):
                raise config.unsupported(key, "only the values of weights can be read")
        groups = config.object("config_groups")
        schemes = tuple(Scheme.parse(group) for name in groups.values if (group := groups.object(name)).has("weights"))
        if not schemes:
            raise config.wrong("config_groups", "an object with a group that has weights")
        return cls(config, schemes, names.modules(config, "ignore"))

    def find(self, name: str, shape: tuple[int, ...], stored: Stored) -> Weight | None:
        module = name.removesuffix(".weight")
        codes = stored.get(f"{module}.weight_packed") or stored.get(name)
        if len(shape) != 2 or codes is None or codes.info.dtype in FLOAT_DTYPES:
            return None
        if entry := names.matching(module, self.ignored):
            raise LeftOutError(path=self.config.path, tensor=codes.info.name, module=module, entry=entry)
        found = _Found(module, (shape[0], shape[1]), stored, codes, self._scheme(module))
        packed = codes.info.name != name
        if packed and found.scheme.kind == "float":
            return found.mxfp4()
        if packed:
            return found.packed()
        return found.floats() if found.scheme.kind == "float" else found.integers()

    def _scheme(self, module: str) -> Scheme:
        """Of the group that names the module, else of the one for all linears."""
        named = [scheme for scheme in self.schemes if names.matching(module, scheme.targets)]
        general = [scheme for scheme in self.schemes if _ANY in scheme.targets]
        return (named or general or list(self.schemes))[0]


@dataclass(frozen=True)
class _Found:
    """The tensors of one module."""

    module: str
    shape: tuple[int, int]
    stored: Stored
    codes: StoredTensor
    scheme: Scheme

    def packed(self) -> Weight:
        (rows, columns), scheme = self.shape, self.scheme
        self._require([(rows, words(scheme.bits, columns))], ["I32"])
        zeros = [(words(scheme.bits, rows), scheme.groups(columns)), *scheme.scale_shapes(rows, columns)]
        return self._integers(zeros, ["I32", "I8"])

    def integers(self) -> Weight:
        self._require([self.shape], ["I8"])
        return self._integers(self.scheme.scale_shapes(*self.shape), ["I8"])

    def floats(self) -> Weight:
        columns = self.shape[1]
        self._require([self.shape], ["F8_E4M3"])
        blocks = {"tensor": self.shape, "channel": (1, columns), "group": (1, self.scheme.group)}
        block = blocks.get(self.scheme.strategy, self.scheme.block)
        return StoredWeight(self.codes, self._scale(), (block[0], block[1]))

    def mxfp4(self) -> Weight:
        rows, columns = self.shape
        self._require([(rows, columns // 2 if columns % mxfp4.GROUP == 0 else -1)], ["U8"])
        scale = self._required("weight_scale", [(rows, columns // mxfp4.GROUP)], ("U8", "F8_E8M0"))
        return CodedWeight((self.codes, scale), self.shape, mxfp4.CODING, mxfp4.Reader(self.codes, scale, columns))

    def _integers(self, zero_shapes: list[tuple[int, ...]], zero_dtypes: list[str]) -> Weight:
        scheme, columns = self.scheme, self.shape[1]
        if scheme.strategy == "block":
            raise TensorDtypeError(
                path=self.codes.file.path, tensor=self.codes.info.name, found=self.codes.info.dtype, expected="F8_E4M3"
            )
        zeros = tensor_of(self.stored, self._name("weight_zero_point"), zero_shapes, zero_dtypes)
        if not scheme.symmetric:
            zeros = self._required("weight_zero_point", zero_shapes, zero_dtypes)
        sizes = tensor_of(self.stored, self._name("weight_shape"), [(2,)], ["I64", "I32"])
        index = tensor_of(self.stored, self._name("weight_g_idx"), [(columns,)], ["I32", "I64"])
        scale = self._scale()
        tensors = tuple(tensor for tensor in (self.codes, scale, zeros, sizes, index) if tensor is not None)
        scattered = scheme.scattered and index is not None
        coding = Coding(coded.INTEGERS, scheme.bits, None if scattered else scheme.group, scheme.symmetric)
        read = _Reader(self.codes, scale, zeros, sizes, index, self.shape, scheme)
        return CodedWeight(tensors, self.shape, coding, read)

    def _scale(self, dtypes: Sequence[str] = SCALE_DTYPES) -> StoredTensor:
        return self._required("weight_scale", self.scheme.scale_shapes(*self.shape), dtypes)

    def _required(self, what: str, shapes: list[tuple[int, ...]], dtypes: Sequence[str]) -> StoredTensor:
        return required(self.stored, self.codes, self._name(what), shapes, dtypes)

    def _require(self, shapes: list[tuple[int, ...]], dtypes: list[str]) -> None:
        tensor_of({self.codes.info.name: self.codes}, self.codes.info.name, shapes, dtypes)

    def _name(self, what: str) -> str:
        return f"{self.module}.{what}"


@dataclass(frozen=True)
class _Reader:
    codes: StoredTensor
    scale: StoredTensor
    zeros: StoredTensor | None
    sizes: StoredTensor | None
    index: StoredTensor | None
    shape: tuple[int, int]
    scheme: Scheme

    def __call__(self, expert: int | None) -> Coded:
        (rows, columns), scheme = self.shape, self.scheme
        self._check_sizes()
        stored = self.codes.array()
        codes = unpack(stored, scheme.bits, columns) if self.codes.info.dtype == "I32" else self._unsigned(self.codes)
        groups = scheme.groups(columns)
        scale = np.broadcast_to(scales(self.scale).reshape(-1, groups), (rows, groups))
        return Coded(codes, scale, self._zero(groups), self._group())

    def _zero(self, groups: int) -> Any:
        rows, bits = self.shape[0], self.scheme.bits
        if self.zeros is None:
            return np.full((rows, groups), 1 << (bits - 1), np.uint8)
        if self.zeros.info.dtype == "I32":
            return unpack(self.zeros.array().T, bits, rows).T
        return np.broadcast_to(self._unsigned(self.zeros).reshape(-1, groups), (rows, groups))

    def _unsigned(self, tensor: StoredTensor) -> Any:
        """u8 of signed numbers. Raises ZeroPointError for one that takes more than the bits of a code."""
        half = 1 << (self.scheme.bits - 1)
        found = tensor.array().astype(np.int16) + half
        beyond = np.argwhere((found < 0) | (found >= 2 * half))
        if not beyond.size:
            return found.astype(np.uint8)
        position, path = beyond[0].tolist(), tensor.file.path
        number = int(found[tuple(position)])
        raise ZeroPointError(path=path, tensor=tensor.info.name, found=number, position=position, highest=2 * half - 1)

    def _group(self) -> Any:
        columns, size = self.shape[1], self.scheme.group
        unset = self.index is not None and bool((self.index.array() == -1).any())  # as what writes it makes it at first
        return group_index(None if unset else self.index, columns, size)

    def _check_sizes(self) -> None:
        """Raises TensorShapeError."""
        if self.sizes is None:
            return
        found = self.sizes.array().tolist()
        if found != list(self.shape):
            name, path = self.sizes.info.name, self.sizes.file.path
            raise TensorShapeError(path=path, tensor=name, found=str(found), expected=str(list(self.shape)))


def _block(weights: ConfigFields) -> tuple[int, int]:
    block = weights.values.get("block_structure")
    if not isinstance(block, list) or len(block) != 2:
        raise weights.wrong("block_structure", "a list of two sizes")
    if not all(type(size) is int and 1 <= size <= MAX_GROUP for size in block):
        raise weights.wrong("block_structure", "a list of two sizes")
    return block[0], block[1]
