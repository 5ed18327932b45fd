"""Weights in float8_e4m3 with scales beside them, value = code * scale: `P.weight_scale_inv` of a linear `P.weight`,
`experts.gate_up_proj_scale_inv` of experts that are fused.

In blocks, [ceil(N/b0), ceil(K/b1)]: github.com/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md; `scale_fmt: ue8m0` since
V3.1: scales that are powers of two, as float32 or as their exponents. Without `weight_block_size` there is one scale a
tensor: transformers, integrations/finegrained_fp8.py, has a number for a linear and [E, 1, 1] for fused experts, for
gate and up [E, 2, 1], one each; `P.weight_scale` is what vLLM calls it (layers/quantization/fp8.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.compiler.checkpoint.errors import LeftOutError, MissingScaleError, StrayScaleError, TensorDtypeError
from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.quantised import names
from dsv3c.compiler.checkpoint.quantised.weight import Stored, Weight, required, tensor_of
from dsv3c.compiler.checkpoint.stored import FLOAT_DTYPES, SCALE_DTYPES, StoredTensor, StoredWeight

SCALE_SUFFIX = "_scale_inv"
FP8 = "F8_E4M3"
_OTHER_SUFFIX = "_scale"


@dataclass(frozen=True)
class DeepseekFp8:
    """block: rows and columns with a scale in common, None: all of a tensor. config: the quantization_config; None:
    there is none, and without a block there may be no fp8."""

    block: tuple[int, int] | None
    config: ConfigFields | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def parse(cls, config: ConfigFields, block: tuple[int, int] | None) -> DeepseekFp8:
        config.choice("scale_fmt", ("ue8m0", "float", "float32"), "float")
        left_out = (names.modules(config, key) for key in ("modules_to_not_convert", "ignored_layers"))
        return cls(block, config, sum(left_out, ()))

    def find(self, name: str, shape: tuple[int, ...], stored: Stored) -> Weight | None:
        if name not in stored:
            return None
        if stored[name].info.dtype != FP8:
            self._refuse_stray(name, stored)
            return None
        tensor = tensor_of(stored, name, [shape], [FP8])
        assert tensor is not None
        path = tensor.file.path
        if self.block is None and self.config is None:
            reason = "config.json has no quantization_config"
            raise MissingScaleError(path=path, tensor=name, found=FP8, reason=reason)
        if len(shape) < 2:
            raise TensorDtypeError(path=path, tensor=name, found=FP8, expected=" or ".join(FLOAT_DTYPES))
        module = name.removesuffix(".weight")
        if self.config and (entry := names.naming(module, self.left_out)):
            raise LeftOutError(path=self.config.path, tensor=name, module=module, entry=entry)
        if self.block is None:
            return _of_one_scale(tensor, shape, stored)
        blocks = (-(-shape[-2] // self.block[0]), -(-shape[-1] // self.block[1]))
        scale = required(stored, tensor, name + SCALE_SUFFIX, [(*shape[:-2], *blocks)], SCALE_DTYPES)
        return StoredWeight(tensor, scale, self.block)

    @staticmethod
    def _refuse_stray(name: str, stored: Stored) -> None:
        scale = stored.get(name + SCALE_SUFFIX) or stored.get(name + _OTHER_SUFFIX)
        if scale is not None:
            found, path, scale_name = stored[name].info.dtype, scale.file.path, scale.info.name
            raise StrayScaleError(path=path, tensor=scale_name, weight=name, found=found)


def _of_one_scale(tensor: StoredTensor, shape: tuple[int, ...], stored: Stored) -> Weight:
    """A matrix, or matrices [E, N, K], of one scale each; gate and up in one may have one each."""
    *stack, rows, columns = shape
    name = tensor.info.name
    lead = tuple(stack)
    shapes = [lead, (*lead, 1, 1)] if stack else [(), (1,), (1, 1)]
    halves = name.endswith("gate_up_proj")
    if halves:
        shapes.append((*lead, 2, 1))
    other = name + SCALE_SUFFIX not in stored and name + _OTHER_SUFFIX in stored
    scale = required(stored, tensor, name + (_OTHER_SUFFIX if other else SCALE_SUFFIX), shapes, SCALE_DTYPES)
    halved = halves and scale.info.shape == shapes[-1]
    return StoredWeight(tensor, scale, (rows // 2 if halved else rows, columns))
