from __future__ import annotations

import errno
import json
import os

import pytest

from sandboxruntime import host, host_probes
from sandboxruntime.cgroup import Layout, Mode
from sandboxruntime.errors import HostError


@pytest.mark.skipif(os.geteuid() != 0, reason="the fix starts with root otherwise")
def test_a_failing_probe_becomes_a_missing_feature_with_its_fix() -> None:
    def fail() -> str:
        raise OSError(errno.ENOSYS, "Function not implemented")

    feature = host._run(host._Probe("x", fail, "a promise", "do this"))
    assert feature == host.Feature(
        "x", False, "Function not implemented (ENOSYS)", "a promise", "do this"
    )


def test_a_host_error_becomes_a_missing_feature_too() -> None:
    def fail() -> str:
        raise HostError("no such thing", feature="x")

    assert host._run(host._Probe("x", fail, "p", "f")).detail == "no such thing"


def test_a_present_feature_needs_no_fix() -> None:
    assert host._run(host._Probe("x", lambda: "works", "p", "f")).fix == ""


def test_a_missing_controller_is_named() -> None:
    layout = Layout(Mode.V2, {}, "/cg", frozenset({"memory"}))
    assert host._run(host._controller(layout, "memory", "memory", "p")).present
    missing = host._run(host._controller(layout, "io", "blkio", "p"))
    assert not missing.present
    assert "cgroup_disable=io" in missing.fix


def test_a_childs_error_is_raised_in_the_parent() -> None:
    def fail() -> None:
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError, match="no"):
        host_probes.in_child(fail)


def test_a_childs_death_is_an_error() -> None:
    with pytest.raises(OSError, match="died"):
        host_probes.in_child(lambda: os._exit(3))


def test_every_probe_says_what_it_is_for_and_names_are_unique(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = host.main(["--json"])
    features = json.loads(capsys.readouterr().out)
    names = [feature["name"] for feature in features]
    assert len(set(names)) == len(names)
    assert {"user_namespace", "overlay", "seccomp", "landlock", "cgroup"} <= set(names)
    for feature in features:
        assert feature["promise"]
        assert feature["detail"]
        assert feature["present"] or feature["fix"], feature
    assert status == (0 if all(feature["present"] for feature in features) else 1)


def test_the_table_shows_the_fix(capsys: pytest.CaptureFixture[str]) -> None:
    feature = host.Feature("x", False, "gone", "a promise", "do this")
    assert "fix: do this" in host._render(feature)
    assert "MISSING" in host._render(feature)
