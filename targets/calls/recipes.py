"""How weights are called in the weights file: after the tensors of the checkpoint that they are made of."""

from __future__ import annotations

from collections.abc import Sequence

from dsv3c.compiler.core.ir import Value, topological_order


class Recipes:
    """Weights by their names, each once, however many graphs have it."""

    def __init__(self) -> None:
        self.by_name: dict[str, Value] = {}
        self._names: dict[Value, str] = {}

    def name(self, recipe: Value) -> str:
        """The checkpoint's names in it, brought together; a number behind them when another recipe has the same."""
        if recipe not in self._names:
            leaves = [str(leaf.attrs["name"]) for leaf in topological_order([recipe]) if leaf.op == "param"]
            base = joined_name(leaves) if leaves else "constant"
            name, count = base, 1
            while name in self.by_name:
                count += 1
                name = f"{base}~{count}"
            self.by_name[name], self._names[recipe] = recipe, name
        return self._names[recipe]


def joined_name(names: Sequence[str]) -> str:
    """One name for tensors used together: model.layers.0.mlp.{gate_proj,up_proj}.weight."""
    names = list(dict.fromkeys(names))
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts)) - 1
    head = next((i for i in range(shortest) if len({part[i] for part in parts}) > 1), shortest)
    tail = next((i for i in range(shortest - head) if len({part[-1 - i] for part in parts}) > 1), shortest - head)
    if len(names) == 1:
        return names[0]
    middle = ",".join(".".join(part[head : len(part) - tail]) for part in parts)
    return ".".join([*parts[0][:head], "{" + middle + "}", *parts[0][len(parts[0]) - tail :]])
