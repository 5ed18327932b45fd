"""Every form of every kernel that op tests run, each once, to be compiled together."""

import tvm_ffi

from dsv3c.targets.gpu.kernels import stages, variants
from tests.targets.gpu.op_tests import CASES, IN_TURNS, PARTED, in_turns, parts


class Forms:
    """functions: the PrimFunc of each form by a name of its own; forms of several specs that are equal are one.

    kinds: by that name, the type of the kernel and the place of the form among its forms. capabilities: as GpuOpTests.
    names: of the cases that are run.
    """

    def __init__(self, capabilities, names=tuple(CASES)):
        self.functions, self.kinds, self._names = {}, {}, {}
        cases = [CASES[name][0] for name in names if name in CASES]
        specs = dict.fromkeys(stage for spec in cases for stage in stages(spec))
        specs |= dict.fromkeys(part for name in PARTED if name in names for part in parts(stages(CASES[name][0])[0]))
        specs |= dict.fromkeys(stage for name in IN_TURNS if name in names for stage in in_turns(CASES[name][0]))
        for number, spec in enumerate(specs):
            for place, form in enumerate(variants(spec, capabilities)):
                function = form.build()
                name = f"{type(spec).__name__}_{number}_{place}"
                if self._names.setdefault(tvm_ffi.structural_hash(function), name) == name:
                    self.functions[name], self.kinds[name] = function, (type(spec).__name__, place)

    def name(self, function):
        """The name of a PrimFunc that equals one of the forms."""
        return self._names[tvm_ffi.structural_hash(function)]
