"""Where a kernel library's thread pool has weights and caches lie on a machine with two memory nodes, emulated by QEMU.

    apt-get install --no-install-recommends qemu-system-x86
    apt-get download linux-image-6.1.0-50-cloud-amd64
    python -m tests.bench.emulate_numa linux-image-*.deb [--cpus 4]
    python -m tests.bench.emulate_numa linux-image-*.deb --artifact OUT

Boots that kernel with CPUs near each of two memories, and `numa_guest.c` with the pool as its only program,
which asks the system where pages lie. What reads take there says nothing: the host's memory is one. With more CPUs than
the host has, moving pages takes seconds, since each waits for interrupts of CPUs that do not run.

With an artifact (compiled with `--emit native`) the guest runs its `dsv3c-run` instead, by the shell of busybox-static,
without and with nodes, and tells what /proc says of the program's pages and whether both wrote the same logits.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

GUEST = Path(__file__).with_name("numa_guest.c")
POOL = Path(__file__).parents[2] / "targets" / "cpu" / "threadpool.c"
MODULES = ("virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk")
WEIGHTS = 16 * 64 * (9 * 4096 + 1024)  # bytes, as numa_guest.c has them
MACHINE = (
    *("-m", "1024", "-accel", "tcg", "-cpu", "max"),
    *("-nographic", "-no-reboot", "-monitor", "none", "-serial", "stdio"),
)

SCRIPT = """#!/bin/busybox sh
alias b=/bin/busybox
b mount -t proc proc /proc
b mount -t sysfs sys /sys
b mount -t devtmpfs dev /dev
b mount -t tmpfs tmp /tmp
while read module; do b insmod /modules/$module; done < /modules/list
echo  # behind what the firmware left on the line
while ! b mount -o ro -t ext4 /dev/vda /disk; do b sleep 1; done
for numa in off auto; do
  echo 3 > /proc/sys/vm/drop_caches
  how="--ids 1,17,42 -n 300 --ignore-eos --temperature 0 --numa $numa --logits /tmp/$numa"
  /disk/model/native/dsv3c-run $how > /tmp/text 2> /tmp/speed &
  while [ ! -s /tmp/$numa ]; do b sleep 1; done
  b sed -nE "s/.*(weights.safetensors|interleave)[^N]*( N[01]=.*)kernel.*/numa=$numa \\1\\2/p" /proc/$!/numa_maps
  b sed -n "s/Cpus_allowed_list:/numa=$numa thread on/p" /proc/$!/task/*/status
  wait
done
b cmp /tmp/off /tmp/auto && echo "logits=same, $(b wc -c < /tmp/auto) bytes"
b poweroff -f
"""


def archive(files: dict[str, bytes]) -> bytes:
    """An initramfs (cpio, format newc) of files by name; a name that ends in / is a folder."""
    out = bytearray()
    for number, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        mode = 0o040755 if name.endswith("/") else 0o100755
        path = name.rstrip("/").encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def prepare(package: Path, artifact: Path | None, folder: Path) -> None:
    """vmlinuz, initramfs and disk in `folder`."""
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "kernel")], check=True)
    (kernel,) = (folder / "kernel" / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, folder / "vmlinuz")
    files = {"modules/": b"", "modules/list": "".join(f"{name}.ko\n" for name in MODULES).encode()}
    for name in MODULES:
        (module,) = (folder / "kernel" / "lib").rglob(f"{name}.ko")
        files[f"modules/{name}.ko"] = module.read_bytes()
    (folder / "files").mkdir()
    if artifact is None:
        files["init"] = pool_guest(folder)
        (folder / "files" / "weights").write_bytes(b"\1" * WEIGHTS)
    else:
        files |= program_guest(artifact)
        shutil.copytree(artifact, folder / "files" / "model")
    (folder / "initramfs").write_bytes(archive(files))
    held = sum(path.stat().st_size for path in (folder / "files").rglob("*") if path.is_file())
    (folder / "disk").write_bytes(b"")
    os.truncate(folder / "disk", held + (64 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-d", str(folder / "files"), str(folder / "disk")], check=True)


def pool_guest(folder: Path) -> bytes:
    """numa_guest.c with the pool, as a program."""
    flags = ["-O2", "-static", "-std=gnu11", "-D_GNU_SOURCE", "-pthread"]
    subprocess.run(["cc", *flags, "-o", str(folder / "init"), str(GUEST), str(POOL)], check=True)
    return (folder / "init").read_bytes()


def program_guest(artifact: Path) -> dict[str, bytes]:
    """The files of a shell that runs the artifact's program, and of the libraries that this needs."""
    needs = [artifact / "native" / "dsv3c-run", *(artifact / "kernels").glob("*.so")]
    listed = "".join(subprocess.run(["ldd", str(path)], capture_output=True, text=True).stdout for path in needs)
    libraries = {Path(path) for path in re.findall(r"\s(/lib\S+)", listed)}
    names = ("bin/", "lib/", "lib64/", "lib/x86_64-linux-gnu/", "proc/", "sys/", "dev/", "disk/", "tmp/")
    files = dict.fromkeys(names, b"") | {str(path).lstrip("/"): path.read_bytes() for path in sorted(libraries)}
    return files | {"bin/busybox": Path("/bin/busybox").read_bytes(), "init": SCRIPT.encode()}


def nodes(cpus: int) -> list[str]:
    """Options for two nodes with half of the CPUs and of the memory each."""
    options = ["-smp", str(cpus)]
    for number in (0, 1):
        near = f"{number * cpus // 2}-{(number + 1) * cpus // 2 - 1}"
        options += ["-object", f"memory-backend-ram,size=512M,id=m{number}"]
        options += ["-numa", f"node,nodeid={number},cpus={near},memdev=m{number}"]
    return [*options, "-numa", "dist,src=0,dst=1,val=21"]


def run(folder: Path, cpus: int) -> list[str]:
    """The lines that the guest prints."""
    boot = ["-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initramfs")]
    boot += ["-append", "console=ttyS0 quiet panic=-1"]
    disk = ["-drive", f"file={folder / 'disk'},format=raw,if=virtio"]
    command = ["qemu-system-x86_64", *MACHINE, *nodes(cpus), *boot, *disk]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, text=True, check=True, timeout=600)
    return re.findall(r"^(?:failed: .*|\S+ +(?:nodes|on)=.*|(?:numa|logits)=.*)$", done.stdout, re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="a Debian package of a Linux kernel")
    parser.add_argument("--artifact", type=Path, metavar="OUT", help="run its native program")
    parser.add_argument("--cpus", type=int, default=2, help="of both nodes together  [default: 2]")
    args = parser.parse_args()
    for program in ("qemu-system-x86_64", "dpkg-deb", "mkfs.ext4", "cc"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is missing: this needs QEMU, dpkg, e2fsprogs and a C compiler")
    with tempfile.TemporaryDirectory() as folder:
        prepare(args.package, args.artifact, Path(folder))
        print("\n".join(run(Path(folder), args.cpus)))


if __name__ == "__main__":
    main()
