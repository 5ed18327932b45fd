"""The lines of docs/use/server.md and tools.md work as they are printed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.runtime.server.conftest import Running
from tests.waiting import PATIENCE

DOCS = Path(__file__).parents[3] / "docs" / "use"
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in ("server.md", "tools.md")}


@pytest.mark.needs("curl")
@pytest.mark.parametrize(("page", "least"), [("server.md", 9), ("tools.md", 5)])
def test_each_curl_line_is_answered(served: Running, page: str, least: int) -> None:
    lines = [line for line in PAGES[page].splitlines() if line.startswith("curl ")]
    assert len(lines) >= least
    for line in lines:
        command = line.replace("http://127.0.0.1:8080", served.url).replace(
            "curl ", "curl --silent --fail-with-body ", 1
        )
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert re.search(r"^(event: .*\n)?(data: )?[\[{]|^# HELP", done.stdout), (line, done.stdout)


@pytest.mark.parametrize("page", PAGES)
def test_the_python_lines_are_answered(served: Running, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    code = code.replace("http://127.0.0.1:8080", served.url).replace(", max_tokens=100", "")
    exec(code.replace('"OUT"', '"tiny", max_tokens=5'), {})
    assert capsys.readouterr().out
