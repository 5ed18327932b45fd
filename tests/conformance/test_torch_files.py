"""Files that torch itself writes, against what torch reads of them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: make conformance")

import torch

from dsv3c.compiler.checkpoint.pickled import TorchFile

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2),
)


def state() -> dict[str, torch.Tensor]:
    base = torch.arange(24).reshape(2, 3, 4)
    found = {str(dtype): base.to(dtype) for dtype in DTYPES}
    whole = torch.arange(24).float().reshape(4, 6)
    found |= {"turned": whole.t(), "rows": whole[1:3], "columns": whole[:, ::2], "spread": whole[:1].expand(5, 6)}
    return found | {"number": torch.tensor(3.0), "empty": torch.empty(0, 3), "parameter": torch.nn.Parameter(whole)}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_what_torch_writes_is_read(protocol: int, zipped: bool, nested: bool, tmp_path: Path) -> None:
    weights: OrderedDict[str, torch.Tensor] = OrderedDict(state())
    if not zipped:
        weights = OrderedDict((name, value) for name, value in weights.items() if "float8" not in name)
    weights._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    content = {"epoch": 3, "loss": 0.5, "state_dict": weights} if nested else weights
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    file = TorchFile(tmp_path / "a.pt")
    assert list(file.tensors) == list(weights)
    for name, value in weights.items():
        plain = value.detach().contiguous()
        assert file.tensors[name].shape == tuple(value.shape)
        assert np.ascontiguousarray(file.array(name)).tobytes() == plain.reshape(-1).view(torch.uint8).numpy().tobytes()
