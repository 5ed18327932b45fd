"""The lines of docs/use/server.md work as they are printed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.runtime.server.conftest import Running

PAGE = Path(__file__).parents[3] / "docs" / "use" / "server.md"
LINES = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("curl ")]


@pytest.mark.needs("curl")
def test_each_curl_line_is_answered(served: Running) -> None:
    assert len(LINES) > 8
    for line in LINES:
        command = line.replace("http://127.0.0.1:8080", served.url).replace(
            "curl ", "curl --silent --fail-with-body ", 1
        )
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert re.search(r"^(data: )?[\[{]|^# HELP", done.stdout), (line, done.stdout)


def test_the_python_lines_are_answered(served: Running, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(code.replace("http://127.0.0.1:8080", served.url).replace('"OUT"', '"tiny", max_tokens=5'), {})
    assert capsys.readouterr().out
