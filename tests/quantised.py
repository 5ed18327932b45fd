"""Tiny checkpoints that are quantised, packed by the published rules of each format.

The rules stand beside each function, with their source; nothing here imports the compiler, so that a checkpoint is an
independent statement of its format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests.checkpoints import fuse_experts, random_tensors, tiny_config, write_safetensors

Array = np.ndarray
# Every matrix has whole words and groups: rows and columns are multiples of 32.
SIZES: dict[str, Any] = {"q_lora_rank": 64, "qk_rope_head_dim": 32}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True)
class Codes:
    """A matrix [N, K] in codes: scale and zero [N, KG]; zero None: scales are the exponents of powers of two."""

    codes: Array
    scale: Array
    zero: Array | None
    group: Array  # of each column

    @property
    def values(self) -> Array:
        if self.zero is None:
            return E2M1[self.codes] * np.exp2(self.scale.astype(np.float32) - 127)[:, self.group]
        offset = self.codes.astype(np.float32) - self.zero[:, self.group]
        return offset * self.scale.astype(np.float32)[:, self.group]


def integers(
    w: Array, bits: int, size: int = 32, asymmetric: bool = False, dtype: Any = np.float16, order: Any = None
) -> Codes:
    """Round to `bits`, in groups of `size` columns (0: all), which `order` mixes up; zeros are 1 or more."""
    columns, highest = w.shape[1], (1 << bits) - 1
    group = np.arange(columns) // (size or columns)
    if order is not None:
        group = group[order]
    count = int(group.max()) + 1
    scale, zero = np.empty((len(w), count), dtype), np.full((len(w), count), 1 << (bits - 1), np.uint8)
    for index in range(count):
        own = w[:, group == index]
        low, high = np.minimum(own.min(axis=1), 0), np.maximum(own.max(axis=1), 0)
        if not asymmetric:
            scale[:, index] = np.maximum(high, -low) / max(highest // 2, 1)
            continue
        scale[:, index] = (high - low) / highest
        zero[:, index] = np.clip(np.rint(-low / scale[:, index].astype(np.float32)), 1, highest)
    codes = np.rint(w / scale.astype(np.float32)[:, group]) + zero[:, group]
    return Codes(np.clip(codes, 0, highest).astype(np.uint8), scale, zero, group)


def e2m1(w: Array) -> Codes:
    """MXFP4: the exponent of a group of 32 is that of its largest magnitude less 2, the largest exponent of e2m1."""
    group = np.arange(w.shape[1]) // 32
    largest = np.abs(w).reshape(len(w), -1, 32).max(axis=2)
    exponents = (np.floor(np.log2(largest)) - 2 + 127).astype(np.uint8)
    scaled = w / np.exp2(exponents.astype(np.float32) - 127)[:, group]
    codes = np.abs(scaled[..., None] - E2M1).argmin(axis=-1).astype(np.uint8)
    return Codes(codes, exponents, None, group)


def bit_stream(numbers: Array, bits: int) -> Array:
    """i32 [rows, words]: numbers [rows, count] one behind the other from the lowest bit of the first word on."""
    rows, count = numbers.shape
    words = np.zeros((rows, -(-count * bits // 32)), np.uint64)
    for index in range(count):
        word, at = divmod(index * bits, 32)
        shifted = numbers[:, index].astype(np.uint64) << np.uint64(at)
        words[:, word] |= shifted & np.uint64(0xFFFFFFFF)
        if at + bits > 32:
            words[:, word + 1] |= shifted >> np.uint64(32)
    return words.astype(np.uint32).view(np.int32)


def gptq(module: str, w: Codes, bits: int, v2: bool = False) -> dict[str, Array]:
    """AutoGPTQ, qlinear_cuda.py, `pack`: all transposed to [K, N], codes packed along K, zeros less one along N."""
    assert w.zero is not None
    return {
        f"{module}.qweight": np.ascontiguousarray(bit_stream(w.codes, bits).T),
        f"{module}.qzeros": bit_stream(w.zero.T - (0 if v2 else 1), bits),
        f"{module}.scales": np.ascontiguousarray(w.scale.T),
        f"{module}.g_idx": w.group.astype(np.int32),
    }


def awq(module: str, w: Codes) -> dict[str, Array]:
    """AutoAWQ, gemm.py, `from_linear`: [K, N] packed along N, eight to a word in the order 0 2 4 6 1 3 5 7."""
    assert w.zero is not None

    def packed(numbers: Array) -> Array:
        words = np.zeros((len(numbers), numbers.shape[1] // 8), np.uint32)
        for place, index in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            words |= numbers[:, index::8].astype(np.uint32) << np.uint32(4 * place)
        return words.view(np.int32)

    return {
        f"{module}.qweight": packed(w.codes.T),
        f"{module}.qzeros": packed(w.zero.T),
        f"{module}.scales": np.ascontiguousarray(w.scale.T),
    }


def pack_quantized(module: str, w: Codes, bits: int, asymmetric: bool = False) -> dict[str, Array]:
    """compressed-tensors, pack_quantized/helpers.py, `pack_to_int32`: along K; zero points along N."""
    assert w.zero is not None
    found = {
        f"{module}.weight_packed": bit_stream(w.codes, bits),
        f"{module}.weight_scale": w.scale,
        f"{module}.weight_shape": np.array(w.codes.shape, np.int64),
    }
    if asymmetric:
        found[f"{module}.weight_zero_point"] = np.ascontiguousarray(bit_stream(w.zero.T, bits).T)
    return found


def int_quantized(module: str, w: Codes) -> dict[str, Array]:
    """compressed-tensors, naive_quantized/base.py: signed numbers of eight bits as they are."""
    signed = (w.codes.astype(np.int16) - 128).astype(np.int8)
    return {f"{module}.weight": signed, f"{module}.weight_scale": w.scale}


def mxfp4_packed(module: str, w: Codes) -> dict[str, Array]:
    """compressed-tensors, nvfp4/helpers.py, `pack_fp4_to_uint8`: two to a byte, the first in the low half."""
    packed = w.codes[:, ::2] | (w.codes[:, 1::2] << 4)
    return {f"{module}.weight_packed": packed, f"{module}.weight_scale": w.scale}


def mxfp4_blocks(name: str, w: Codes) -> dict[str, Array]:
    """transformers, integrations/mxfp4.py: groups as blocks of 16 bytes, two to a byte, the first in the low half."""
    packed = w.codes[:, ::2] | (w.codes[:, 1::2] << 4)
    return {f"{name}_blocks": packed.reshape(len(packed), -1, 16), f"{name}_scales": w.scale}


def group_of(bits: int, size: int, asymmetric: bool = False, **more: Any) -> dict[str, Any]:
    """A quantization_config of compressed-tensors with one group of weights."""
    strategy = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": "int", "symmetric": not asymmetric, "dynamic": False, **strategy, **more}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": ["lm_head", "re:.*mlp\\.gate$"],
        "kv_cache_scheme": None,
    }


def packed_config(bits: int, size: int, asymmetric: bool = False) -> dict[str, Any]:
    return {**group_of(bits, size, asymmetric), "format": "pack-quantized"}


def gptq_config(bits: int, size: int, **more: Any) -> dict[str, Any]:
    known = {"desc_act": False, "sym": True, "lm_head": False, "checkpoint_format": "gptq"}
    return {"quant_method": "gptq", "bits": bits, "group_size": size or -1, **known, **more}


def awq_config(size: int = 32, **more: Any) -> dict[str, Any]:
    known = {"zero_point": True, "version": "gemm", "modules_to_not_convert": None}
    return {"quant_method": "awq", "bits": 4, "group_size": size, **known, **more}


@dataclass(frozen=True)
class Foreign:
    """How a checkpoint is quantised: its quantization_config, how a matrix becomes codes, and codes tensors.

    format: of ours, that keeps the codes.
    """

    quantization: Mapping[str, Any]
    rounded: Callable[[Array], Codes]
    packed: Callable[[str, Codes], dict[str, Array]]
    format: str = ""
    experts_alone: bool = False


@dataclass(frozen=True)
class Written:
    """A checkpoint as it was written: stored tensors, what weights stand for, and the codes of those that have them."""

    config: Mapping[str, Any]
    tensors: dict[str, Array] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    codes: dict[str, Codes] = field(default_factory=dict)


def write(folder: Path, foreign: Foreign, **overrides: Any) -> Written:
    """config.json and model.safetensors, all projections in codes, the rest in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**{**SIZES, "quantization_config": dict(foreign.quantization), **overrides})
    written = Written(config)
    for name, value in random_tensors(config).items():
        if "_proj" in name and (".experts." in name or not foreign.experts_alone):
            codes = foreign.rounded(value)
            written.codes[name], written.values[name] = codes, codes.values
            written.tensors.update(foreign.packed(name.removesuffix(".weight"), codes))
            continue
        plain = value if name.endswith("bias") else value.astype(ml_dtypes.bfloat16)
        written.tensors[name], written.values[name] = plain, plain.astype(np.float32)
    save(folder, written)
    return written


def write_fused(folder: Path, quantization: Mapping[str, Any], **overrides: Any) -> Written:
    """MXFP4 with fused experts, as gpt-oss has them; the rest in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**{**SIZES, "quantization_config": dict(quantization), **overrides})
    written = Written(config)
    for name, value in fuse_experts(random_tensors(config)).items():
        if ".mlp.experts." not in name:
            written.tensors[name] = value.astype(np.float32 if name.endswith("bias") else ml_dtypes.bfloat16)
            written.values[name] = written.tensors[name].astype(np.float32)
            continue
        parts = [e2m1(expert) for expert in value]
        stacked = [mxfp4_blocks(name, part) for part in parts]
        written.tensors.update({key: np.stack([each[key] for each in stacked]) for key in stacked[0]})
        prefix, projection = name.rsplit(".", 1)
        for expert, part in enumerate(parts):
            half = len(part.codes) // 2
            halves = {"gate": slice(0, half), "up": slice(half, None)}
            for role, rows in halves.items() if projection == "gate_up_proj" else [("down", slice(None))]:
                full = f"{prefix}.{expert}.{role}_proj.weight"
                own = Codes(part.codes[rows], part.scale[rows], None, part.group)
                written.codes[full], written.values[full] = own, own.values
    save(folder, written)
    return written


def save(folder: Path, written: Written) -> None:
    (folder / "config.json").write_text(json.dumps(dict(written.config), indent=2))
    write_safetensors(folder / "model.safetensors", written.tensors, {"format": "pt"})


def _of_gptq(bits: int, size: int, format: str, **more: Any) -> Foreign:
    config = gptq_config(bits, size, **more)
    asymmetric, v2 = not config["sym"], config["checkpoint_format"] == "gptq_v2"
    return Foreign(
        config, lambda w: integers(w, bits, size, asymmetric), lambda name, w: gptq(name, w, bits, v2), format
    )


def _of_packed(bits: int, size: int, format: str, asymmetric: bool = False, dtype: Any = ml_dtypes.bfloat16) -> Foreign:
    return Foreign(
        packed_config(bits, size, asymmetric),
        lambda w: integers(w, bits, size, asymmetric, dtype),
        lambda name, w: pack_quantized(name, w, bits, asymmetric),
        format,
    )


_KIMI = _of_packed(4, 32, "int4-g32")
INTEGERS: dict[str, Foreign] = {
    "packed int4": _KIMI,
    "packed int4, experts alone": Foreign(
        {**_KIMI.quantization, "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
                                          "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"]},
        _KIMI.rounded, _KIMI.packed, "int4-g32", experts_alone=True,
    ),
    "packed int4, asymmetric": _of_packed(4, 32, "int4-g32-asym", asymmetric=True, dtype=np.float16),
    "packed int8, channels": _of_packed(8, 0, "int8", dtype=np.float32),
    "int8": Foreign(
        {**group_of(8, 0), "format": "int-quantized"},
        lambda w: integers(w, 8, 0, dtype=np.float32), int_quantized, "int8",
    ),
    "gptq": _of_gptq(4, 32, "int4-g32"),
    "gptq v2, asymmetric": _of_gptq(4, 32, "int4-g32-asym", sym=False, checkpoint_format="gptq_v2"),
    "gptq, asymmetric": _of_gptq(4, 32, "int4-g32-asym", sym=False),
    "gptq of 8 bits": _of_gptq(8, 32, "int8-g32"),
    "awq": Foreign(awq_config(), lambda w: integers(w, 4, 32, asymmetric=True), awq, "int4-g32-asym"),
}  # fmt: skip
# Formats whose codes fit a wider format of ours.
WIDENED: dict[str, Foreign] = {
    "gptq of 3 bits": _of_gptq(3, 32, ""),
    "gptq of 2 bits": _of_gptq(2, 32, ""),
    "gptq, one group": _of_gptq(4, 0, ""),
    "packed int4, channels": _of_packed(4, 0, ""),
}
