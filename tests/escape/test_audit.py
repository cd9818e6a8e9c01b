"""The differential audit beside bubblewrap, wherever tests run; `make audit` has all others.

It is not about one attack: whatever the inside can see or do on any start path, and not in
bubblewrap's, needs a reason. In the machine with pure cgroup v2 as well, where an older Linux has
other calls and other files.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxruntime.syscall_numbers import NUMBERS
from tests.audit.compare import Row, compare, rows
from tests.audit.peers import OURS, Host, Subject, bwrap, listening, ours
from tests.audit.report import document

NAMES = {number: name for name, number in NUMBERS["x86_64"].items()}
ROOTFS, PYTHON = Path("/"), "/usr/bin/python3"  # of the host, read-only
RESULTS = Path("/srv/results")  # of the machine


@pytest.fixture
def host() -> Iterator[Host]:
    """What the probe looks for: listeners of the host's, and its facts."""
    with listening() as found:
        yield found


def found(subject: Subject, host: Host) -> dict[str, Row]:
    assert not subject.failure, f"{subject.name}: {subject.failure}"
    return rows(subject.report, host.facts, subject.limits, NAMES)


def test_no_path_is_looser_than_bubblewrap_without_a_reason(host: Host) -> None:
    subjects = [*ours(host), bwrap(host, ROOTFS, PYTHON)]
    *mine, theirs = ({subject.name: found(subject, host)} for subject in subjects)
    compared = compare({name: each for part in mine for name, each in part.items()}, theirs)
    told = [{"name": each.name, "how": each.how, "failure": each.failure} for each in subjects]
    if os.environ.get("SANDBOXKERNEL_TEST_VM"):
        record = document({"Linux": platform.release()}, told, compared)
        RESULTS.joinpath("audit.json").write_text(json.dumps(record, indent=1) + "\n")
    assert len(mine) == len(OURS)
    assert [row.name for row in compared if row.is_unexplained] == []


def test_what_a_sandbox_lacks_is_found(host: Host) -> None:
    """The control: bubblewrap less one of its options, in the place of ours."""
    whole = {"bwrap": found(bwrap(host, ROOTFS, PYTHON), host)}
    lacks = found(bwrap(host, ROOTFS, PYTHON, without="--disable-userns"), host)
    looser = {row.name for row in compare({"ours": lacks}, whole) if row.is_unexplained}
    assert "namespace call: unshare NEWUSER" in looser
