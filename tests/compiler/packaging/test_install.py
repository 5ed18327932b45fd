"""What the archive does on a device: `run.sh` and `install.py`, with wheels made here that need no network."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dsv3c.compiler import packaging
from dsv3c.runtime.cli.program import root

WHEEL = "dsv3c_runtime-1.0-py3-none-any.whl"
LOST = "lost-1.0-py3-none-any.whl"
SAYS_ITS_ARGUMENTS = "import sys\nprint(*sys.argv[1:], sep='|')\n"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="run.sh needs a POSIX shell")


def facts(**changes: Any) -> dict[str, Any]:
    """package.json for this machine."""
    machine = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    present = {"system": sys.platform, "machine": machine, "glibc": "", "python": python}
    return {**present, "packages": {}, "bundled": True, **changes}


def unpacked(folder: Path, **changes: Any) -> Path:
    """An archive as it is unpacked on a device; its runtime prints the arguments it is given."""
    (folder / "wheels").mkdir(parents=True)
    with zipfile.ZipFile(folder / "wheels" / WHEEL, "w") as wheel:
        wheel.writestr("dsv3c/runtime/__init__.py", "")
        wheel.writestr("dsv3c/runtime/__main__.py", SAYS_ITS_ARGUMENTS)
    for name in packaging.SCRIPTS:
        (folder / name).write_bytes((packaging.FOLDER / name).read_bytes())
    (folder / "run.sh").chmod(0o755)
    digest = sha256((folder / "wheels" / WHEEL).read_bytes()).hexdigest()
    (folder / "package.json").write_text(json.dumps(facts(runtime={WHEEL: digest}, **changes)))
    (folder / "requirements.txt").write_text("")
    return folder


def run(folder: Path, *args: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    inside = os.environ | {"PYTHON": sys.executable} | environment
    command = [str(folder / "run.sh"), *args]
    done = subprocess.run(command, env=inside, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_first_run_installs_and_generates(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "a b" / "tiny")
    first = run(folder, "-p", "Once upon a time", "-n", "5")
    assert first.stdout == f"generate|{folder}/model|-p|Once upon a time|-n|5\n"
    assert first.stderr == f"installing the runtime into {folder}/site\n"
    assert run(folder, "-p", "*").stderr == ""
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*packaging.SCRIPTS, "package.json", "requirements.txt", "site", "wheels"]
    )


@pytest.mark.parametrize("command", sorted(root.commands))
def test_every_command_of_the_runtime_can_be_named(tmp_path: Path, command: str) -> None:
    folder = unpacked(tmp_path / "tiny")
    model = "" if command == "doctor" else f"|{folder}/model"
    assert run(folder, command, "--json").stdout == f"{command}{model}|--json\n"
    assert run(folder).stdout == f"generate|{folder}/model\n"


def test_the_current_folder_is_not_imported_from(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "tiny")
    (tmp_path / "dsv3c" / "runtime").mkdir(parents=True)
    (tmp_path / "dsv3c" / "runtime" / "__main__.py").write_text("raise SystemExit('the wrong one')")
    command = ["sh", "tiny/run.sh", "-p", "a"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"generate|{folder}/model|-p|a\n"


def test_a_link_to_it_runs(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "tiny")
    (tmp_path / "story").symlink_to(folder / "run.sh")
    done = subprocess.run([tmp_path / "story"], env=os.environ | {"PYTHON": sys.executable}, capture_output=True)
    assert done.stdout.decode() == f"generate|{folder}/model\n"


def test_a_newer_archive_in_the_same_place_is_installed_anew(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "tiny")
    run(folder)
    newer = json.loads((folder / "package.json").read_text()) | {"note": "newer"}
    (folder / "package.json").write_text(json.dumps(newer))
    assert "installing" in run(folder).stderr
    assert run(folder).stderr == ""


def test_another_folder_for_the_packages(tmp_path: Path) -> None:
    folder, site = unpacked(tmp_path / "tiny"), tmp_path / "elsewhere" / "site"
    run(folder, SITE=str(site))
    assert (site / "dsv3c" / "runtime" / "__main__.py").is_file()
    assert not (folder / "site").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    folder, site = unpacked(tmp_path / "tiny"), tmp_path / "home"
    site.mkdir()
    (site / "letter").write_text("dear")
    assert f"{site} holds something else; set SITE" in run(folder, SITE=str(site), code=1).stderr
    assert [path.name for path in site.iterdir()] == ["letter"]


def test_a_project_with_a_package_json_is_left_alone(tmp_path: Path) -> None:
    folder, site = unpacked(tmp_path / "tiny"), tmp_path / "web"
    site.mkdir()
    (site / "package.json").write_text('{"name": "web"}')
    (site / "index.js").write_text("code")
    assert "holds something else" in run(folder, SITE=str(site), code=1).stderr
    assert sorted(path.name for path in site.iterdir()) == ["index.js", "package.json"]


def test_files_put_beside_the_packages_are_left_alone(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "tiny")
    run(folder)
    (folder / "site" / "dsv3c" / "mine.py").write_text("code")
    newer = json.loads((folder / "package.json").read_text()) | {"note": "newer"}
    (folder / "package.json").write_text(json.dumps(newer))
    assert "holds something else" in run(folder, code=1).stderr
    assert (folder / "site" / "dsv3c" / "mine.py").read_text() == "code"
    (folder / "site" / "dsv3c" / "mine.py").unlink()
    assert "installing" in run(folder).stderr


def test_a_missing_wheel_leaves_nothing(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "tiny", packages={LOST: ""})
    assert f"cannot read {folder}/wheels/{LOST}: No such file" in run(folder, code=1).stderr
    assert not [path.name for path in folder.iterdir() if "site" in path.name]


def test_a_damaged_wheel_leaves_nothing(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "tiny")
    with (folder / "wheels" / WHEEL).open("r+b") as file:
        file.write(b"X")
    assert f"{WHEEL} is damaged; copy the archive again" in run(folder, code=1).stderr
    assert not [path.name for path in folder.iterdir() if "site" in path.name]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"python": "3.99"}, r"for Python 3.99, .* is Python 3\.\d+; set PYTHON .*dsv3c package --python 3\.\d+"),
        ({"machine": "riscv64"}, f"for {sys.platform} on riscv64, this machine is {sys.platform} on "),
        ({"system": "plan9"}, f"for plan9 on .*, this machine is {sys.platform} on "),
        ({"glibc": "99.1"}, r"needs glibc 99.1 or newer, this system has "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_wrong_device_is_told_what_is_wrong(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    folder = unpacked(tmp_path / "tiny", **changes)
    error = run(folder, code=1).stderr
    assert re.search(says, error) and error.count("\n") == 1
    assert not (folder / "site").exists()


def test_without_python_the_shell_says_so(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "tiny")
    assert "no-such-python" in run(folder, code=127, PYTHON="no-such-python").stderr
