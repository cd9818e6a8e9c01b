"""What a service manager passes is taken if it is right, refused if it is not, and never handed on."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from sandboxkernel.daemon import systemd
from sandboxkernel.errors import SandboxError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A socket that listens on the path returned, as the descriptor a service manager passes."""
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        sock.set_inheritable(True)
        monkeypatch.setattr(systemd, "FIRST_FD", os.dup(sock.fileno()))
    return path


def variables(**changes: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "api", **changes}


def test_the_socket_is_taken_and_its_variables_are_gone(passed: Path) -> None:
    environ = variables(PATH="/bin")
    sock = systemd.take_listening_socket(passed, environ)
    assert sock is not None
    assert environ == {"PATH": "/bin"}
    assert not sock.get_inheritable()
    assert not sock.getblocking()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(passed))
        sock.accept()[0].close()
    sock.close()


def test_without_a_manager_there_is_none(tmp_path: Path) -> None:
    assert systemd.take_listening_socket(tmp_path / "api.sock", {}) is None


def test_what_was_meant_for_another_process_is_left_and_forgotten(passed: Path) -> None:
    """A shell that systemd started passes the variables on to us, but not the socket."""
    environ = variables(LISTEN_PID="1")
    assert systemd.take_listening_socket(passed, environ) is None
    assert environ == {}
    os.fstat(systemd.FIRST_FD)
    os.close(systemd.FIRST_FD)


def test_two_sockets_are_refused(passed: Path) -> None:
    with pytest.raises(SandboxError, match="passes 2 sockets"):
        systemd.take_listening_socket(passed, variables(LISTEN_FDS="2"))
    os.close(systemd.FIRST_FD)


def test_a_socket_of_another_path_is_refused(passed: Path) -> None:
    with pytest.raises(SandboxError, match="not on /elsewhere"):
        systemd.take_listening_socket(Path("/elsewhere"), variables())


def test_a_socket_that_does_not_listen_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        monkeypatch.setattr(systemd, "FIRST_FD", os.dup(sock.fileno()))
    with pytest.raises(SandboxError, match="not a listening"):
        systemd.take_listening_socket(tmp_path / "api.sock", variables())


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"sandboxkernel-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        systemd.notify("READY=1", {"NOTIFY_SOCKET": f"@{name}" if abstract else name})
        assert manager.recv(100) == b"READY=1"


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    systemd.notify("READY=1", {})
    systemd.notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nobody")})


def test_the_recorded_score_is_of_this_unit() -> None:
    """What it counts as denied is what the unit denies, and the page has its sum."""
    unit = (ROOT / "packaging/systemd/sandboxkernel.service").read_text()
    record = (ROOT / "docs/benchmarks/systemd-security.txt").read_text()
    denied = set(re.findall(r"CAP_\w+", " ".join(re.findall(r"^Cap\w+=~(.*)$", unit, re.M))))
    scored = re.findall(r"^(\S) CapabilityBoundingSet=~(CAP_\w+) ", record, re.M)
    assert len(scored) > 15
    assert [name for mark, name in scored if (mark == "✓") != (name in denied)] == []
    (score,) = re.findall(r"Overall exposure level for sandboxkernel.service: ([\d.]+)", record)
    assert f"gives the unit {score} of 10" in (ROOT / "docs/security.md").read_text()
