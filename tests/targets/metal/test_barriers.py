"""Barriers are left out one by one: each must be missed, by a race, a wrong result or a fault in some order of threads.

A barrier is told by its kernel's type, the form, and its place among the form's barriers; where kernels of one type and
form have different numbers of barriers, they count apart. It is missed when a case of any weight and size misses it:
what has one step only does without some. The test takes two kernels; all barriers are tried
by `python -m tests.targets.metal.test_barriers`, or `make barriers`, in minutes.
"""

import sys
import time
from collections import defaultdict

import pytest

from dsv3c.targets.gpu.source import source
from dsv3c.targets.metal import capabilities
from dsv3c.targets.metal.dialect import METAL
from tests.targets.gpu.op_tests import CASES, IN_TURNS, PARTED, GpuOpTests, Launches, exact_forms
from tests.targets.gpu.shim.forms import Forms
from tests.targets.gpu.shim.library import ORDERS, ShimFault
from tests.targets.gpu.shim.metal import barriers, kernels, metal_library


class _Tests(GpuOpTests):
    capabilities = exact_forms(capabilities.METAL)


class Mutants:
    """places: by barrier, the (form, line) that stand for it."""

    def __init__(self, wanted=lambda kind: True):
        self._forms = Forms(_Tests.capabilities)
        functions = {name: f for name, f in self._forms.functions.items() if wanted(self._forms.kinds[name])}
        text = source(functions, METAL)
        self._library = metal_library(text, races=True)
        self.places = defaultdict(list)
        for name, own in kernels(text).items():
            lines = barriers(own)
            for place, line in enumerate(lines):
                self.places[(*self._forms.kinds[name], len(lines), place)].append((name, line))
        self._cases = self._used()

    def _used(self):
        """The cases of each form, the fastest first. A mutant is tried where the kernel itself is right."""
        used, tests = defaultdict(dict), _Tests()
        whole = [(tests.test_matches_numpy, name) for name in CASES]
        parted = [(tests.test_parts_of_a_weight_give_together_what_the_whole_gives, name) for name in PARTED]
        turns = [(tests.test_steps_of_more_tokens_than_scratch_has_room_for_take_turns, name) for name in IN_TURNS]
        for case in whole + parted + turns:
            names, start = set(), time.perf_counter()
            try:
                self._run(case, lambda name, names=names: names.add(name) or (ORDERS["forward"], 0))
            except KeyError:
                continue  # a stage of the case is not compiled
            for name in names:
                used[name][case] = time.perf_counter() - start
        return {name: sorted(cases, key=cases.get) for name, cases in used.items()}

    def _run(self, case, chosen):
        def runner(_, kernel, arrays, grid):
            name = self._forms.name(kernel)
            self._library.run(name, arrays, grid, *chosen(name))

        test, name = case
        test(name, Launches(runner, _Tests.capabilities))

    def missed_by(self, barrier):
        """(order, (test, its case)) in which the barrier is missed, None if there is none."""
        for order in ORDERS:
            for name, line in self.places[barrier]:
                for case in self._cases.get(name, ()):
                    try:
                        self._run(case, lambda run, n=name, at=line, o=order: (ORDERS[o], at if run == n else 0))
                    except (AssertionError, ShimFault):
                        return order, case
        return None


@pytest.fixture(scope="module")
def mutants(gpp):
    return Mutants(lambda kind: kind[0] in ("RmsNorm", "PairDown", "PairSum"))


def test_a_missing_barrier_shows(mutants):
    """All barriers of two kernels; the others are tried by the program."""
    assert {barrier[0] for barrier in mutants.places} == {"RmsNorm", "PairDown"}
    assert [barrier for barrier in mutants.places if mutants.missed_by(barrier) is None] == []


def main():
    mutants = Mutants()
    orders, unmissed = defaultdict(int), []
    for barrier in mutants.places:
        found = mutants.missed_by(barrier)
        if found is None:
            unmissed.append(barrier)
            print("not missed:", *barrier, flush=True)
        else:
            orders[found[0]] += 1
    texts = sum(map(len, mutants.places.values()))
    print(f"{len(mutants.places)} barriers in {texts} places of texts; first missed: {dict(orders)}")
    print(f"{len(unmissed)} not missed")
    return 1 if unmissed else 0


if __name__ == "__main__":
    sys.exit(main())
