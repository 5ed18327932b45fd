from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsv3c.compiler.checkpoint.origin import hub_source, model_name


@pytest.mark.parametrize("file", ["", "Model-Q4_0.gguf", "Model-Q4_0-00002-of-00003.gguf"])
def test_in_the_cache_of_a_hub_links_to_blobs_name_nothing(file: str, tmp_path: Path) -> None:
    store = tmp_path / "models--org--Model--One"
    snapshot = store / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (store / "blobs").mkdir()
    if file:
        (store / "blobs" / "5eed").write_bytes(b"GGUF")
        (snapshot / file).symlink_to("../../blobs/5eed")
    assert model_name(snapshot / file) == ("Model-Q4_0" if file else "Model--One")
    assert hub_source(snapshot / file) == {"id": "org/Model--One", "revision": "c0ffee"}


def test_elsewhere_a_folder_or_a_file_gives_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "My-Model.gguf").mkdir()
    monkeypatch.chdir(tmp_path / "My-Model.gguf")
    assert model_name(Path(os.curdir)) == "My-Model.gguf" and hub_source(Path(os.curdir)) is None
    assert model_name(tmp_path / "other.GGUF") == "other" and hub_source(tmp_path / "other.GGUF") is None
