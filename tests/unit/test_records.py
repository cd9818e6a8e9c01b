"""Files of the daemon's that somebody has changed, cut short, or written with a newer version."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxkernel.daemon.ids import RANGE_SIZE, IdRanges
from sandboxkernel.daemon.lease import Lease, LeaseJournal, Record
from sandboxkernel.daemon.recovery import forget_former_boots
from sandboxkernel.daemon.removals import Removals
from sandboxkernel.errors import SandboxError

LEASE = Lease(id="0123456789ab", cgroup="x/0/0123456789ab", sockets="/run/x/k/0123456789ab")
GOOD = msgspec.json.encode(Record(boot="b", lease=LEASE))


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def cut(data: bytes) -> st.SearchStrategy[bytes]:
    return st.integers(0, len(data) - 1).map(lambda size: data[:size])


def changed(data: bytes) -> st.SearchStrategy[bytes]:
    return st.tuples(st.integers(0, len(data)), st.integers(0, 9), st.binary(max_size=9)).map(
        lambda edit: data[: edit[0]] + edit[2] + data[edit[0] + edit[1] :]
    )


@given(st.one_of(st.binary(max_size=99), cut(GOOD), changed(GOOD), st.just(b"[" * 100_000)))
def test_no_record_stops_the_daemon_or_hides_another(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        journal = LeaseJournal(Path(name))
        journal.write(LEASE)
        (Path(name) / "aaaaaaaaaaaa").write_bytes(data)
        (Path(name) / "directory").mkdir()
        (Path(name) / ".directory").mkdir()
        (Path(name) / "link").symlink_to("/nonexistent")
        found = [record.lease for record in journal.records()]
        assert LEASE in found and {lease.id for lease in found} <= {LEASE.id, "aaaaaaaaaaaa"}
        assert (Path(name) / "aaaaaaaaaaaa").read_bytes() == data  # kept, for a person to read


def test_a_record_of_a_newer_version_is_read_as_far_as_it_is_known(folder: Path) -> None:
    raw = json.loads(GOOD)
    raw["invented"] = {"later": [1]}
    raw["lease"]["invented"] = 1
    (folder / LEASE.id).write_text(json.dumps(raw))
    assert [record.lease for record in LeaseJournal(folder).records()] == [LEASE]


def test_a_record_under_anothers_name_is_left_alone(folder: Path) -> None:
    (folder / "ffffffffffff").write_bytes(GOOD)
    assert list(LeaseJournal(folder).records()) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=99),
        cut(b'{"1000": 0, "1001": 1}'),
        st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.none(), st.text()))
        .map(json.dumps).map(str.encode),
    )
)  # fmt: skip
def test_no_id_is_guessed(data: bytes) -> None:
    """Either what the file says, each range for one user, or a refusal that names the file."""
    folder = Path(tempfile.mkdtemp())
    path = folder / "ids.json"
    path.write_bytes(data)
    try:
        ranges = IdRanges(path, base=RANGE_SIZE, count=2**62)
        known = json.loads(data)
        bases = [ranges.base_of(int(uid)) for uid in known]
        assert len(set(bases)) == len(known)
        assert ranges.base_of(4242) not in bases or "4242" in known
    except SandboxError as exc:
        assert str(path) in exc.message or "no free id range" in exc.message
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("marker", [b"", b"\xff\xfe", b"x" * 99, None])
def test_a_broken_marker_of_the_boot_is_replaced(folder: Path, marker: bytes | None) -> None:
    if marker is not None:
        (folder / ".boot").write_bytes(marker)
    (folder / "0123456789ab").mkdir()
    forget_former_boots(folder, Removals())
    assert [path.name for path in folder.iterdir()] == [".boot"]
    (folder / "0123456789ab").mkdir()
    forget_former_boots(folder, Removals())
    assert (folder / "0123456789ab").is_dir()
