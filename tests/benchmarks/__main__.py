"""`python -m tests.benchmarks`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The daemon's modules come from this tree, whatever the environment has installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "runtime"))
    from tests.benchmarks.cli import main

    sys.exit(main())
