"""Kernel libraries: what they need to load, the thread pool linked into them, and errors of the tools behind them."""

import ctypes
import os
import re
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest
import tvm_ffi

from dsv3c.compiler.errors import NoRoomError
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.runtime.measure.limits import measure_loaded
from dsv3c.targets.calls.elementwise import Add
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.cpu.children import in_children
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.cpu.library import THREADPOOL, compile_object, link_library
from dsv3c.targets.link import platforms
from dsv3c.targets.link.platforms import LinkFailed, NoCCompiler, find_c_compiler
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cpu.harness import lacking
from tests.targets.libraries import build_library
from tests.waiting import PATIENCE

# Calls the pool directly: task i adds i+1 to slot[i]; every slot is written once a launch, by any number of threads.
POOL_TEST = r"""
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
typedef struct { void *sync; int32_t num_task; } Env;
typedef int (*Lambda)(int, Env *, void *);
extern int (*__TVMBackendParallelLaunch)(Lambda, void *, int);
extern int dsv3c_threads(int);
static int add(int i, Env *e, void *c) { atomic_fetch_add((atomic_int *)c + i, i + 1); return 0; }
static int fail(int i, Env *e, void *c) { return i == 3 ? -7 : 0; }
static int nest(int i, Env *e, void *c) { return __TVMBackendParallelLaunch(add, c, 8); }
static int count(int i, Env *e, void *c) {
  atomic_int *seen = c;
  atomic_fetch_add(&seen[0], 1);
  atomic_store(&seen[1], e->num_task);
  return 0;
}
static int check(int jobs, int tasks) {
  for (int job = 0; job < jobs; job++) {
    atomic_int slots[64];
    memset(slots, 0, sizeof slots);
    if (__TVMBackendParallelLaunch(add, slots, tasks)) return 1;
    for (int i = 0; i < tasks; i++) if (atomic_load(&slots[i]) != i + 1) return 1;
    if (job % 97 == 0) usleep(300);  // let workers fall asleep now and then
  }
  return 0;
}
static void *caller(void *arg) { return (void *)(intptr_t)check(3000, 13); }
#define MUST(x) if (!(x)) { printf("failed: %s\n", #x); return 1; }
int main(void) {
  for (int threads = 1; threads <= 5; threads++) {
    MUST(dsv3c_threads(threads) == threads);
    MUST(check(3000, 17) == 0);
  }
  atomic_int seen[2] = {0, 0};
  MUST(__TVMBackendParallelLaunch(count, seen, 0) == 0);
  MUST(seen[0] == seen[1] && seen[0] >= 5);
  MUST(__TVMBackendParallelLaunch(fail, 0, 8) == -7);
  MUST(check(100, 17) == 0);
  atomic_int slots[8] = {0};
  MUST(__TVMBackendParallelLaunch(nest, slots, 6) == 0);
  for (int i = 0; i < 8; i++) MUST(slots[i] == 6 * (i + 1));
  pthread_t callers[3];
  for (int i = 0; i < 3; i++) pthread_create(&callers[i], 0, caller, 0);
  for (int i = 0; i < 3; i++) { void *result; pthread_join(callers[i], &result); MUST(result == 0); }
  pid_t child = fork();
  if (child == 0) _exit(check(500, 17));
  int status;
  waitpid(child, &status, 0);
  MUST(status == 0);
  MUST(dsv3c_threads(0) >= 1);
  MUST(check(100, 17) == 0);
  return 0;
}
"""


@pytest.fixture(scope="module")
def best_level():
    usable = [level for level in LEVELS if not lacking(level)]
    if not usable:
        pytest.skip("this CPU is below every x86 level")
    return usable[-1]


@pytest.fixture(scope="module")
def path(best_level, tmp_path_factory):
    functions = {
        "add": build(Add(Rows(1 << 16), 64), best_level),
        "linear": build(Linear(Rows(4), 512, 512, WeightFormat.parse("float32")), best_level),
    }
    return build_library(functions, best_level, tmp_path_factory.mktemp("library") / "kernels.so")


# The system gives two threads and refuses all others.
REFUSED_TEST = r"""
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
typedef int (*Lambda)(int, void *, void *);
extern int (*__TVMBackendParallelLaunch)(Lambda, void *, int);
extern int dsv3c_threads(int);
static int asked;
int limited_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *), void *argument) {
  return ++asked > 2 ? EAGAIN : pthread_create(thread, how, start, argument);
}
static int add(int i, void *env, void *sum) { atomic_fetch_add((atomic_int *)sum, i); return 0; }
int main(void) {
  atomic_int sum = 0;
  dsv3c_threads(8);
  for (int i = 0; i < 1000; i++) __TVMBackendParallelLaunch(add, &sum, 5);
  return sum != 10000 ? 1 : asked != 3 ? 2 : 0;
}
"""


def test_threads_that_the_system_refuses_are_not_asked_for_at_each_launch(tmp_path):
    (tmp_path / "test.c").write_text(REFUSED_TEST)
    flags = ["-O1", "-std=gnu11", "-D_GNU_SOURCE", "-pthread", "-w"]
    files = [str(tmp_path / "test.c"), str(tmp_path / "pool.o")]
    renamed = ["-Dpthread_create=limited_create", "-c", "-o", files[1], str(THREADPOOL)]
    for command in (renamed, ["-o", str(tmp_path / "test"), *files]):
        subprocess.run([*find_c_compiler(), *flags, *command], check=True)
    assert subprocess.run([str(tmp_path / "test")], check=False, timeout=PATIENCE).returncode == 0


@pytest.mark.parametrize("sanitizer", [None, "thread"])
def test_thread_pool(tmp_path, sanitizer):
    source, program = tmp_path / "pool_test.c", tmp_path / "pool_test"
    source.write_text(POOL_TEST)
    flags = ["-O1", "-g", "-std=gnu11", "-D_GNU_SOURCE", "-pthread", "-w"]
    flags += [f"-fsanitize={sanitizer}"] if sanitizer else []
    command = [*find_c_compiler(), *flags, "-o", str(program), str(source), str(THREADPOOL)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and sanitizer:
        pytest.skip("this compiler has no thread sanitizer")
    assert built.returncode == 0, built.stderr
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0"}
    done = subprocess.run(
        [str(program)], capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment
    )
    if sanitizer and "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert done.returncode == 0, done.stdout + done.stderr[:4000]


@pytest.mark.needs("binutils")
def test_needs_no_tvm_and_no_workspace(path):
    listed = subprocess.run(["nm", "-D", str(path)], capture_output=True, text=True, check=True).stdout
    symbols = {line.split()[-1]: line.split()[-2] for line in listed.splitlines()}
    assert "Workspace" not in listed
    assert symbols["__TVMBackendParallelLaunch"] == "D"  # ours: the weak slot of TVM would be V
    assert symbols["dsv3c_threads"] == "T"
    foreign = [name for name, kind in symbols.items() if kind == "U" and name.startswith("TVM")]
    assert all(name.startswith("TVMFFI") for name in foreign)


def test_runs_with_tvm_ffi_alone(path):
    code = f"""
import ctypes, sys
import numpy as np, tvm_ffi
kernels = tvm_ffi.load_module({str(path)!r})
ctypes.CDLL({str(path)!r}).dsv3c_threads(2)
def aligned(size, dtype):
    raw = np.zeros(size * 4 + 64, np.uint8)
    return raw[-raw.ctypes.data % 64:][: size * 4].view(dtype)
control = aligned(16, np.int32)
control[0] = 1 << 16
a, b, y = (aligned(1 << 22, np.float32) for _ in range(3))
a[:], b[:] = 1, 2
kernels["add"](control, a, b, y)
assert (y == 3).all()
assert "tvm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


def test_slot_is_bound_back_to_the_pool(path):
    tvm_ffi.load_module(str(path))
    library = ctypes.CDLL(str(path))
    slot = ctypes.c_void_p.in_dll(library, "__TVMBackendParallelLaunch")
    library.dsv3c_threads(2)
    ours = slot.value
    slot.value = 0
    assert library.dsv3c_threads(3) == 3
    assert slot.value == ours


def test_kernels_may_be_called_from_several_threads(path):
    kernels = tvm_ffi.load_module(str(path))
    ctypes.CDLL(str(path)).dsv3c_threads(3)
    wrong = []

    def work(value):
        raw = [np.zeros((1 << 24) + 64, np.uint8) for _ in range(4)]
        control, a, b, y = (r[-r.ctypes.data % 64 :][: 1 << 24].view(np.float32) for r in raw)
        control = control.view(np.int32)[:16]
        control[0] = 1 << 16
        a[:], b[:] = value, 1
        for _ in range(5):
            kernels["add"](control, a, b, y)
        wrong.append(int((y != value + 1).sum()))

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0, 0, 0]


def test_missing_compiler_is_named(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(platforms.shutil, "which", lambda _: None)
    monkeypatch.setattr(platforms.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(NoCCompiler, match=re.escape("pip install ziglang")):
        find_c_compiler()


def test_cc_comes_first_and_ziglang_last(monkeypatch):
    monkeypatch.setenv("CC", "mycc -m64")
    monkeypatch.setattr(platforms.shutil, "which", lambda name: f"/bin/{name}")
    assert find_c_compiler() == ["mycc", "-m64"]
    monkeypatch.delenv("CC")
    monkeypatch.setattr(platforms.shutil, "which", lambda _: None)
    monkeypatch.setattr(platforms.importlib.util, "find_spec", lambda _: object())
    assert find_c_compiler()[1:] == ["-m", "ziglang", "cc"]


def test_failing_compiler_shows_its_output(best_level, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", f"{sys.executable} -c 0/0")
    with pytest.raises(LinkFailed, match="ZeroDivisionError"):
        build_library({"add": build(Add(Rows(4), 16), best_level)}, best_level, tmp_path / "kernels.so")


def test_probes_measure_something(path):
    found = measure_loaded(ctypes.CDLL(str(path)))
    assert found.read_bandwidth > 0 and found.float_rate > 0 and found.int8_rate > 0


def test_a_full_disk_under_a_kernel_is_an_error(best_level, tmp_path):
    def job() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        compile_object({"add": build(Add(Rows(4), 16), best_level)}, best_level, tmp_path / "kernels.o")

    with pytest.raises(NoRoomError, match=r"cannot write .*: File too large"):
        in_children([job], lambda number: None, tmp_path)


def test_a_full_disk_under_the_linker_is_an_error(best_level, tmp_path):
    file = compile_object({"add": build(Add(Rows(4), 16), best_level)}, best_level, tmp_path / "kernels.o")

    def job() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        link_library([file], best_level, tmp_path / "kernels.so")

    with pytest.raises(NoRoomError, match=r"cannot write .*: File "):
        in_children([job], lambda number: None, tmp_path)
