"""`system check`: planted leftovers and damage are found and mended, and what lives is not touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxkernel.client import SandboxClient
from sandboxkernel.errors import NotPermitted
from sandboxkernel.images.store import ImageStore
from sandboxruntime.cgroup import Cgroup, Limits, read_layout
from tests.hostile.support import acting_as
from tests.support import (
    CGROUP_PARENT,
    ROOT,
    RunningDaemon,
    run_inside,
    running_daemon,
    sandbox,
    warm_up,
)

STRAY = "0123456789ab"
ALICE = 61001


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon with a store and a cgroup parent of its own: all others' would be strays to it."""
    config = f"c.SandboxKernelDaemon.cgroup_parent = {f'{CGROUP_PARENT}/check'!r}\n"
    with running_daemon(config, data_dir=tmp_path_factory.mktemp("data")) as daemon:
        for _ in daemon.client().prepare_image("host"):
            pass
        yield daemon


def found(client: SandboxClient, *, repair: bool = False) -> set[tuple[str, str, bool]]:
    return {(f.kind, f.object, f.repaired) for f in client.check(repair=repair).findings}


def test_a_host_in_order_has_no_findings(own: RunningDaemon) -> None:
    zygote = warm_up(own)
    with sandbox(own, as_kernel=True), sandbox(own, ephemeral=True):
        report = own.client().check(repair=True)
        assert report.findings == []
        assert report.checked["images"] == 1
        assert report.checked["cgroups"] >= 2 + (zygote is not None)


def test_leftovers_are_given_back_and_sandboxes_left_alone(own: RunningDaemon) -> None:
    client = own.client()
    with sandbox(own, ephemeral=True) as kernel:
        layout = read_layout()
        stray = Cgroup.create(layout, f"{CGROUP_PARENT}/check/7/{STRAY}", Limits(pids=10))
        process = subprocess.Popen(["sleep", "600"])
        stray.enter(process.pid)
        (own.run_dir / "k" / STRAY).mkdir()
        (own.data_dir / "scratch" / STRAY / "upper").mkdir(parents=True)
        (own.run_dir / "leases" / STRAY).write_text('{"lease": ')
        expected = {("cgroup", stray.path), ("sockets", STRAY), ("scratch", STRAY),
                    ("journal", STRAY)}  # fmt: skip
        assert found(client) == {(*item, False) for item in expected}
        assert process.poll() is None
        assert found(client, repair=True) == {(*item, True) for item in expected}
        assert process.wait(10) == -9
        assert found(client) == set()
        assert not (own.data_dir / "scratch" / STRAY).exists()
        assert run_inside(own, kernel, "echo", "alive") == (0, "alive\n")


def damaged(own: RunningDaemon) -> Path:
    """A byte of a Python file of the image's tree, changed in place; its times as before."""
    tree = own.data_dir / "images" / "unpacked"
    path = sorted(tree.rglob("json/decoder.py"))[0]
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return path


def test_a_layer_is_not_read_again_for_another_image_that_has_it(own: RunningDaemon) -> None:
    store, known = ImageStore(own.data_dir / "images"), dict[str, str]()
    assert store.verify("host", known) == ()
    damaged(own)
    assert store.verify("host", known) == ()
    (problem,) = store.verify("host")
    assert "was changed" in problem
    damaged(own)  # the same bit: it is whole again
    assert store.verify("host") == ()


def test_a_byte_of_an_image_is_found_and_the_image_made_again(own: RunningDaemon) -> None:
    warm_up(own)  # a zygote lives in it
    path = damaged(own)
    before = path.read_bytes()
    findings = own.client().check().findings
    assert [(f.kind, f.object, "was changed" in f.problem) for f in findings] == [
        ("image", "host", True)
    ]
    with sandbox(own):
        (finding,) = own.client().check(repair=True).findings
        assert (finding.repaired, "1 sandboxes use it" in finding.hint) == (False, True)
    assert {f.repaired for f in own.client().check(repair=True).findings} == {True}
    assert own.client().check().findings == []
    assert path.read_bytes() != before
    with sandbox(own, as_kernel=True) as kernel:
        assert run_inside(own, kernel, "python3", "-c", "import json") == (0, "")


def test_only_administrators_check(own: RunningDaemon) -> None:
    with acting_as(ALICE), pytest.raises(NotPermitted):
        own.client().check(repair=True)


def test_the_command_tells_and_ends_with_1_until_all_is_repaired(own: RunningDaemon) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sandboxkernel.cli", "system", "check", *arguments],
            capture_output=True, text=True, check=False,
            env={**own.environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"},
        )  # fmt: skip

    (own.run_dir / "k" / STRAY).mkdir()
    done = run()
    assert (done.returncode, done.stdout.splitlines()[1].split()[:3]) == (
        1, ["sockets", STRAY, "found"],
    )  # fmt: skip
    assert "checked: " in done.stderr
    done = run("--repair", "--format", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["findings"][0] == {
        "kind": "sockets", "object": STRAY, "problem": "belongs to no sandbox", "repaired": True,
        "hint": "",
    }  # fmt: skip
    assert run().returncode == 0
