"""Coverage-guided fuzzing, for a moment, and every input that ever found something."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.__main__ import CORPUS, TARGETS, run_target, todays_seed
from tests.support import RANDOM

RUNS = 1500
# A run of CI is not where something new should be met.
SEED = int(os.environ.get("SANDBOXKERNEL_FUZZ_SEED") or (todays_seed() if RANDOM else 1))
KEPT = [path for path in sorted(CORPUS.glob("*/*")) if path.is_file()]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_stays_mended(path: object) -> None:
    TARGETS[path.parent.name][0](path.read_bytes())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", TARGETS)
def test_made_up_bytes_are_read_or_refused(name: str) -> None:
    pytest.importorskip("atheris", reason="no wheel for this machine")
    outcome = run_target(name, f"-runs={RUNS}", seed=SEED)
    assert not outcome.finding, f"again with SANDBOXKERNEL_FUZZ_SEED={SEED}: {outcome.finding}"
    assert outcome.executions >= RUNS and outcome.coverage > 0
