"""The command of the kernelspec: its file, its command line, its endpoints."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path
from typing import Any

import click
import pytest

from sandboxkernel.bridge import bind_endpoints
from sandboxkernel.cli.launch import launch_command
from sandboxkernel.connection_file import ConnectionFile, read_connection_file
from sandboxkernel.errors import Conflict, RequestError

PORTS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}


def write(folder: Path, text: str) -> Path:
    path = folder / "kernel.json"
    path.write_text(text)
    return path


def test_members_of_other_programs_are_ignored(tmp_path: Path) -> None:
    text = json.dumps({**PORTS, "ip": "127.0.0.1", "key": "k", "jupyter_session": "x", "new": []})
    found = read_connection_file(write(tmp_path, text))
    assert found == ConnectionFile(ip="127.0.0.1", key="k", **PORTS)
    assert list(found.ports()) == list(PORTS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a connection file"),
        ("[]", "not a connection file"),
        (json.dumps({**PORTS}), "ip"),
        (json.dumps({**PORTS, "ip": ""}), "ip"),
        (json.dumps({**PORTS, "ip": "127.0.0.1", "hb_port": 0}), "hb_port"),
        (json.dumps({**PORTS, "ip": "127.0.0.1", "hb_port": "5"}), "hb_port"),
        (json.dumps({**PORTS, "ip": "127.0.0.1", "hb_port": 4}), "twice"),
        (" " * 70_000, "65536"),
    ],
)
def test_what_is_no_connection_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RequestError, match=said) as caught:
        read_connection_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("words", "profile", "rest"),
    [
        (["-f", "k"], None, ()),
        (["-fk"], None, ()),
        (["--profile", "a", "-f", "k"], "a", ()),
        # IPython has a --profile of its own.
        (["-p", "a", "-f", "k", "--profile=b", "-f", "x"], "a", ("--profile=b", "-f", "x")),
        (["-f", "k", "--", "--help"], None, ("--", "--help")),
    ],
)
def test_what_follows_the_file_is_ipykernels(
    words: list[str], profile: str | None, rest: tuple[str, ...]
) -> None:
    context = launch_command.make_context("launch", list(words))
    assert context.params["connection_file"] == Path("k")
    assert context.params["profile"] == profile
    assert context.params["arguments"] == rest


@pytest.mark.parametrize("words", [["--no-such", "-f", "k"], ["word", "-f", "k"], [], ["--", "-f"]])
def test_what_precedes_it_is_ours(words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        launch_command.make_context("launch", list(words))


def connection(**members: Any) -> ConnectionFile:
    return ConnectionFile(**{"ip": "127.0.0.1", **PORTS, **members})


def test_when_one_endpoint_is_taken_none_is_kept(tmp_path: Path) -> None:
    prefix = str(tmp_path / "k")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{prefix}-5")
        other.listen()
        with pytest.raises(Conflict, match=r"hb_port .* is taken"):
            bind_endpoints(connection(transport="ipc", ip=prefix))
    # All but the taken one had been bound: nobody listens there, and a next start takes them.
    endpoints = bind_endpoints(connection(transport="ipc", ip=prefix))
    assert len(endpoints) == 5
    for sock in endpoints.values():
        sock.close()


def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "k-1").write_text("mine")
    with pytest.raises(Conflict):
        bind_endpoints(connection(transport="ipc", ip=str(tmp_path / "k")))
    assert (tmp_path / "k-1").read_text() == "mine"


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="shell_port"):
        bind_endpoints(connection(transport="ipc", ip=str(tmp_path / ("x" * 120))))


def test_a_name_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(errno.EINVAL, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(RequestError, match="Name or service not known"):
        bind_endpoints(connection(ip="nowhere.invalid"))
