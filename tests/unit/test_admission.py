"""What one user may take, and who is a user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxkernel.daemon.admission import BODIES_MAX, Admission
from sandboxkernel.daemon.subids import SubordinateIds
from sandboxkernel.errors import NotPermitted, ResourcesExhausted

ADA, BOB = 1001, 1002


@pytest.fixture
def admission(tmp_path: Path) -> Admission:
    return Admission(per_user=3, descriptors=16, subordinate=SubordinateIds(tmp_path / "subuid"))


def test_connections_are_counted_by_user_and_given_back(admission: Admission) -> None:
    for _ in range(3):
        admission.connect(ADA)
    with pytest.raises(ResourcesExhausted, match="uid 1001 has 3 connections, the limit is 3"):
        admission.connect(ADA)
    admission.connect(BOB)
    admission.disconnect(ADA)
    admission.connect(ADA)


def test_all_users_leave_root_its_share(admission: Admission) -> None:
    for uid in (ADA, BOB, 1003):
        for _ in range(3 if uid != 1003 else 2):
            admission.connect(uid)
    with pytest.raises(ResourcesExhausted, match="all 8 connections"):
        admission.connect(1003)
    for _ in range(4):
        admission.connect(0)
    with pytest.raises(ResourcesExhausted, match="all 12 connections"):
        admission.connect(0)


def test_bodies_are_bounded_together_and_given_back_once(admission: Admission) -> None:
    admission.begin("first", ADA, BODIES_MAX)
    with pytest.raises(ResourcesExhausted, match="bytes"):
        admission.begin("second", ADA, 1)
    admission.begin("without a body", ADA, 0)
    admission.begin("of another", BOB, 1)
    for _ in range(2):
        admission.end("first")
    admission.begin("third", ADA, BODIES_MAX)
    with pytest.raises(ResourcesExhausted, match="bytes"):
        admission.begin("fourth", ADA, 1)


def test_a_subordinate_id_is_no_user(tmp_path: Path) -> None:
    path = tmp_path / "subuid"
    path.write_text("ada:100000:65536\n\n# words\nbob:x:1\nbob:200000\n1002:300000:1\n")
    ids = SubordinateIds(path)
    assert [ids.owner_of(uid) for uid in (99999, 100000, 165535, 165536)] == [
        None, "ada", "ada", None,
    ]  # fmt: skip
    assert ids.owner_of(300000) == "1002" and ids.owner_of(0) is None
    admission = Admission(per_user=3, descriptors=16, subordinate=ids)
    with pytest.raises(NotPermitted, match="uid 100001 is a subordinate id of ada"):
        admission.connect(100001)
    path.write_text("")
    os.utime(path, ns=(1, 1))
    assert ids.owner_of(100001) is None
    path.unlink()
    assert ids.owner_of(100001) is None
