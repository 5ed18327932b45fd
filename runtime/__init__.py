"""The runtime: loads an artifact and generates text from it.

model = dsv3c.runtime.load("artifacts/model-int4-x86")
print(model.generate("Once upon a time", temperature=0).text)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

__version__ = "0.2.0"  # of both distributions; their pyproject.toml read it from here

if TYPE_CHECKING:
    from dsv3c.runtime.model import Model


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    context: int | None = None,
    max_batch: int | None = None,
    device: str | None = None,
    gpu_layers: int | None = None,
    cpu_artifact: str | os.PathLike[str] | None = None,
    speculate: str | os.PathLike[str] | None = None,
    prefix_cache: bool = True,
    numa: str = "auto",
) -> Model:
    """Check an artifact and load it: weights are mapped, the cache and the activations allocated.

    threads: by default one on each performance core that this process may use, fewer where its CPU quota is less.
    context: tokens one sequence may hold (by default what the model was made for). max_batch: how many sequences of
    that length the cache holds (1).
    device: of a GPU target, a number, a part of a name or a type (`dsv3c doctor` lists them). gpu_layers: how many of
    the last layers run there (all); the others run on the CPU, with the artifact `cpu_artifact` of the same model.
    speculate: who drafts tokens for one step to verify: "mtp", the model's own layer; "ngram", the text itself; or the
    path of a smaller artifact with the same tokens. prefix_cache: keep what was read for requests that begin alike.
    numa: "auto" divides threads and weights among the memory nodes of a machine that has several, "off" does not.
    Raises dsv3c.runtime.errors.RuntimeFault.
    """
    # Imported here so that `import dsv3c.runtime` stays light.
    from dsv3c.runtime.artifact.artifact import Artifact
    from dsv3c.runtime.devices.device import Placement
    from dsv3c.runtime.model import Model, Serving

    placement = Placement(threads, device, gpu_layers, cpu_artifact, numa)
    return Model.load(Artifact.open(path), placement, Serving(context, max_batch, speculate, prefix_cache))
