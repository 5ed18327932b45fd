"""Libraries for x86 load on systems with glibc 2.28, however new this one's is."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3c.targets.calls.elementwise import Add
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.link import platforms
from dsv3c.targets.link.platforms import ARM_LINUX, old_glibc
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cpu.elf import glibc
from tests.targets.libraries import build_library

OLDEST = (2, 28)
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="this machine does not link for glibc on x86-64",
)


def test_kernel_libraries(tmp_path):
    path = build_library({"add": build(Add(Rows(4), 16), LEVELS[0])}, LEVELS[0], tmp_path / "kernels.so")
    assert glibc(path) <= OLDEST


def test_what_no_library_would_want_by_itself(tmp_path):
    """Each function of glibc.h is asked for by its old name; a thread is started and joined through them."""
    source = tmp_path / "all.c"
    source.write_text(
        "#include <dlfcn.h>\n#include <math.h>\n#include <pthread.h>\n#include <signal.h>\n#include <stdio.h>\n"
        "#include <stdlib.h>\n"
        "static pthread_once_t once = PTHREAD_ONCE_INIT;\nstatic pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;\n"
        "static int n;\nstatic void count(void) { n++; }\n"
        "static void *work(void *x) { pthread_once(&once, count); return pthread_mutex_trylock(&lock) ? 0 : x; }\n"
        "int all(double x) {\n"
        "  pthread_t thread; void *done = 0; Dl_info info; char *end; sigset_t none;\n"
        "  sigemptyset(&none); pthread_sigmask(SIG_BLOCK, &none, 0);\n"
        "  if (pthread_create(&thread, 0, work, &n) || pthread_join(thread, &done) || done != &n) return 1;\n"
        "  if (!dladdr((void *)all, &info) || !dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD)) return 2;\n"
        '  if (dlsym(RTLD_DEFAULT, "no such name") || !dlerror()) return 3;\n'
        "  if (fabs(exp(log(x)) - x) > 1e-9 || pow(x, 2) < x) return 4;\n"
        '  return strtol("7", &end, 10) + strtoll("7", &end, 10) + strtoull("7", &end, 10) == 21 ? n : 5;\n'
        "}\n"
    )
    compiler = platforms.find_c_compiler()
    flags = ["-D_GNU_SOURCE", "-std=gnu11", "-fno-builtin", *old_glibc(None, compiler), "-shared", "-fPIC", "-pthread"]
    library = tmp_path / "all.so"
    subprocess.run([*compiler, *flags, "-o", str(library), str(source), "-lm"], check=True)
    assert glibc(library) <= OLDEST
    script = f"import ctypes; f = ctypes.CDLL({str(library)!r}).all; f.argtypes = [ctypes.c_double]; print(f(1.5))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "1\n"


def test_zig_is_told_by_its_target():
    zig = [sys.executable, "-m", "ziglang", "cc"]
    assert old_glibc(None, zig) == ["-target", "x86_64-linux-gnu.2.28"]
    assert old_glibc(None, [*zig, "-target", "x86_64-linux-gnu.2.31"]) == []  # the user's word goes first
    assert old_glibc(ARM_LINUX, [*zig, "-target", ARM_LINUX.zig]) == []


def test_only_what_is_there_is_linked(monkeypatch):
    monkeypatch.setattr(platforms, "_has", lambda compiler, library: Path(library).stem == "libpthread.so")
    assert [part for part in old_glibc(None, ["cc"]) if part.startswith("-l")] == ["-l:libpthread.so.0"]
