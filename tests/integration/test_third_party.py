"""What the tools of others say inside; tests/third_party asks the same on every start path."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandboxkernel.images.store import StoredImage
from tests.harness import harness
from tests.third_party.privileges import PROGRAMS, control, inside, judge, not_differing
from tests.third_party.tools import image_with


@pytest.fixture(scope="module")
def image() -> Iterator[StoredImage]:
    with image_with(*PROGRAMS) as made:
        yield made


def test_tools_of_others_find_no_privilege(image: StoredImage) -> None:
    with harness() as launcher:
        assert judge("cold", inside(launcher, image)) == []


def test_tools_of_others_find_privileges_where_there_are_any(image: StoredImage) -> None:
    assert not_differing(control(image)) == []
