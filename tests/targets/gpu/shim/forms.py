"""Every form of every kernel that the op tests run, each once, to be compiled together."""

import tvm_ffi

from dsv3c.targets.gpu.kernels import stages, variants
from tests.targets.gpu.op_tests import CASES


class Forms:
    """functions: the PrimFunc of each form by a name of its own."""

    def __init__(self):
        specs = dict.fromkeys(stage for spec, *_ in CASES.values() for stage in stages(spec))
        kinds = {spec: f"{type(spec).__name__}_{number}" for number, spec in enumerate(specs)}
        self.functions = {
            f"{kinds[spec]}_{number}": form.build() for spec in specs for number, form in enumerate(variants(spec))
        }
        self._names = {tvm_ffi.structural_hash(function): name for name, function in self.functions.items()}

    def name(self, function):
        """The name of a PrimFunc that equals one of the forms."""
        return self._names[tvm_ffi.structural_hash(function)]
