"""The machine is started anew while sandboxes run and start: suddenly, and by systemd.

Each test is a run of pytest's of its own; selection.BOOTS has the order, and what happens between.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sandboxkernel.client import SandboxClient
from sandboxkernel.models import Kernel
from tests.support import ZYGOTES, output_of, wait_until
from tests.vm.conftest import (
    DATA_DIR,
    RUN_DIR,
    SERVICE,
    WAYS,
    answers,
    install,
    shown,
    start,
    start_by,
    systemctl,
)

# A fork on demand comes of the same zygote as a spare, which takes a minute of an emulated processor.
KINDS = tuple(way for way in WAYS if way[1] != "warm")
# After a boot; for the same reason.
AGAIN = KINDS if ZYGOTES else tuple(way for way in KINDS if way[1] != "spare")
BEFORE = Path("/srv/results/before.json")
LOAD = Path("/srv/results/load.txt")
CGROUPS = Path("/sys/fs/cgroup/sandboxkernel")
# What a user has in the layer, and on the disk: the machine may lose what nobody asked it to keep.
KEEP = """
import os, sys
with open("/home/sandbox/" + sys.argv[1], "w") as file:
    file.write(sys.argv[2])
    file.flush()
    os.fsync(file.fileno())
"""
# Starts and ends kernels until the machine ends.
COME_AND_GO = f"""
import sys
from pathlib import Path
from sandboxkernel.client import SandboxClient
from sandboxkernel.models import KernelCreate
client, count = SandboxClient(Path("{RUN_DIR}/api.sock")), 0
while True:
    for profile in {[profile for profile, _ in KINDS]}:
        name = f"load-{{count}}"
        client.remove(client.create(KernelCreate(kernel_id=name, profile=profile)).id)
        count += 1
        with open("{LOAD}", "ab") as file:
            file.write(b".")
"""


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def client() -> SandboxClient:
    return SandboxClient(RUN_DIR / "api.sock")


def keep(kernel: Kernel, name: str, text: str) -> None:
    assert output_of(client(), kernel.id, ["python3", "-c", KEEP, name, text]) == (0, "")


def populate() -> None:
    """A kernel of each kind, a file in the layer by each, and starts and ends that never stop."""
    wait_until(answers, what="the service")
    for profile, path in KINDS:
        keep(start_by(client(), profile, path), f"kept-by-{profile}", boot_id())
    keep(start(client(), "throwaway"), "forgotten", "x")
    LOAD.unlink(missing_ok=True)
    subprocess.Popen([sys.executable, "-c", COME_AND_GO], start_new_session=True)
    wait_until(lambda: LOAD.exists() and LOAD.stat().st_size > len(KINDS), what="the load")
    assert len(list(CGROUPS.iterdir())) > len(KINDS)
    BEFORE.write_text(json.dumps({"boot": boot_id()}))
    with BEFORE.open() as file:
        os.fsync(file.fileno())


def check_what_is_left(ways: Sequence[tuple[str, str]]) -> None:
    """The service is there by itself; of the sandboxes, what their users wrote, and nothing else.

    Kernels start on these of KINDS.
    """
    before = json.loads(BEFORE.read_text())["boot"]
    assert boot_id() != before
    wait_until(lambda: shown(SERVICE, "ActiveState") == "active", what="the service")
    assert list(client().kernels()) == []
    # Neither leftovers nor damage: every file of the image is compared with its digest.
    report = client().check()
    assert (report.findings, report.checked["images"]) == ([], 1)
    assert [path.name for path in (DATA_DIR / "scratch").iterdir()] == [".boot"]
    assert list((RUN_DIR / "k").glob("*")) == []
    assert not CGROUPS.exists() or [p for p in CGROUPS.iterdir() if p.is_dir()] == []
    for profile, path in ways:
        kernel = start_by(client(), profile, path)
        # A user has one layer of an image, whichever profile it is used by.
        kept = [f"/home/sandbox/kept-by-{each}" for each, _ in KINDS]
        assert output_of(client(), kernel.id, ["cat", *kept]) == (0, before * len(KINDS))
        assert output_of(client(), kernel.id, ["ls", "/home/sandbox/forgotten"])[0] != 0
        client().remove(kernel.id)


def test_before_a_reset() -> None:
    Path("/var/log/journal").mkdir(exist_ok=True)  # so that the next boot can read of this one
    systemctl("restart", "systemd-journald")
    install()
    systemctl("enable", "--now", SERVICE)
    populate()


def test_after_a_reset() -> None:
    """Nothing was written, unmounted or told."""
    check_what_is_left(AGAIN)


def test_before_a_reboot() -> None:
    populate()


def test_after_a_reboot() -> None:
    """systemd had stopped the service in time, and ended the sandboxes, which are not part of it."""
    check_what_is_left(AGAIN[:1])
    journal = subprocess.run(
        ["journalctl", "--no-pager", "--boot=-1", f"--unit={SERVICE}", "--output=cat"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert f"{SERVICE}: Deactivated successfully." in journal
    assert "timed out" not in journal and "Traceback" not in journal
