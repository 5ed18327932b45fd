"""DeepSeek's FP8: `P.weight` in float8_e4m3 and `P.weight_scale_inv` [ceil(N/b0), ceil(K/b1)], one scale a block.

github.com/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md; `scale_fmt: ue8m0` since V3.1: scales that are powers of two, as
float32 or as their exponents. transformers stores experts that are fused in the same way, block by block.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.quantised import names
from dsv3c.compiler.checkpoint.quantised.weight import Stored, Weight, required, tensor_of
from dsv3c.compiler.checkpoint.stored import FLOAT_DTYPES, SCALE_DTYPES, StoredWeight
from dsv3c.compiler.errors import LeftOutError, MissingScaleError, StrayScaleError, TensorDtypeError

SCALE_SUFFIX = "_scale_inv"
FP8 = "F8_E4M3"


@dataclass(frozen=True)
class DeepseekFp8:
    """block: rows and columns with a scale in common; None: config.json has none, and there may be no fp8."""

    block: tuple[int, int] | None
    config: ConfigFields | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def parse(cls, config: ConfigFields, block: tuple[int, int] | None) -> DeepseekFp8:
        config.choice("scale_fmt", ("ue8m0", "float", "float32"), "float")
        return cls(block, config, names.modules(config, "modules_to_not_convert"))

    def find(self, name: str, shape: tuple[int, ...], stored: Stored) -> Weight | None:
        if name not in stored:
            return None
        if stored[name].info.dtype != FP8:
            self._refuse_stray(name, stored)
            return None
        tensor = tensor_of(stored, name, [shape], [FP8])
        assert tensor is not None
        path = tensor.file.path
        if self.block is None:
            reason = "config.json has no quantization_config with a weight_block_size"
            raise MissingScaleError(path=path, tensor=name, found=FP8, reason=reason)
        if len(shape) < 2:
            raise TensorDtypeError(path=path, tensor=name, found=FP8, expected=" or ".join(FLOAT_DTYPES))
        module = name.removesuffix(".weight")
        if self.config and (entry := names.naming(module, self.left_out)):
            raise LeftOutError(path=self.config.path, tensor=name, module=module, entry=entry)
        blocks = (-(-shape[-2] // self.block[0]), -(-shape[-1] // self.block[1]))
        scale = required(stored, tensor, name + SCALE_SUFFIX, [(*shape[:-2], *blocks)], SCALE_DTYPES)
        return StoredWeight(tensor, scale, self.block)

    @staticmethod
    def _refuse_stray(name: str, stored: Stored) -> None:
        scale = stored.get(name + SCALE_SUFFIX)
        if scale is not None:
            found, path, scale_name = stored[name].info.dtype, scale.file.path, scale.info.name
            raise StrayScaleError(path=path, tensor=scale_name, weight=name, found=found)
