"""What the files of attacks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Harness, harness


@pytest.fixture(scope="module")
def confined() -> Iterator[Harness]:
    """A launcher with every defence; its containers are made by the tests."""
    with harness() as running:
        yield running
