"""Made-up requests of every operation, by a user and by root: an answer that the document allows."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sandboxkernel.daemon.routes import ROUTES
from tests.hostile.fuzz import CONFIG, ROOT_SKIPS, fuzz
from tests.hostile.support import MALLORY
from tests.support import RunningDaemon, running_daemon

EXAMPLES = int(os.environ.get("SANDBOXKERNEL_FUZZ_EXAMPLES", "3"))
OPERATIONS = {f"{method.upper()} {route.path}" for route in ROUTES for method in route.replies}


@pytest.fixture(scope="module")
def folderless() -> Iterator[RunningDaemon]:
    """A daemon whose profile allows no folder of the host."""
    with running_daemon(CONFIG) as running:
        yield running


@pytest.mark.parametrize("uid", [MALLORY, 0], ids=["user", "root"])
def test_made_up_requests_get_documented_answers(folderless: RunningDaemon, uid: int) -> None:
    figures = fuzz(folderless, uid, EXAMPLES)
    assert figures.findings == []
    assert figures.operations == OPERATIONS - (set() if uid else ROOT_SKIPS)
    assert "Traceback" not in folderless.log_path.read_text()
