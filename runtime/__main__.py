"""`python -m dsv3c.runtime` is the command `dsv3c-runtime`."""

from __future__ import annotations

from dsv3c.runtime.cli import main

if __name__ == "__main__":
    main("python -m dsv3c.runtime")
