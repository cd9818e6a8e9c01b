"""What one run adds to the image: this repository as it is now, and what to run. A tar file."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Phase", "build_packages", "write_payload"]

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "srv/repository"


@dataclass(frozen=True, slots=True)
class Phase:
    """One run of pytest, and what the machine does after it: "go on", "reset" or "reboot".

    A reset is sudden: nothing is written, unmounted or told. A reboot is systemd's.
    """

    arguments: Sequence[str]
    then: str = "go on"


def write_payload(
    path: Path,
    phases: Sequence[Phase],
    environment: Mapping[str, str],
    packages: Sequence[Path] = (),
) -> None:
    """Write a tar file for the guest to unpack over its root. `packages` go to /srv/packages."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    names = sorted(set(listed.stdout.decode().rstrip("\0").split("\0")))
    with tarfile.open(path, "w") as tar:
        for name in names:
            if (ROOT / name).exists():  # deleted, and not yet committed
                tar.add(ROOT / name, f"{REPOSITORY}/{name}", filter=_as_root)
        for package in packages:
            tar.add(package, f"srv/packages/{package.name}", filter=_as_root)
        for number, phase in enumerate(phases, 1):
            lines = "".join(f"{argument}\n" for argument in phase.arguments)
            _add_text(tar, f"srv/phases/{number}.arguments", lines)
            _add_text(tar, f"srv/phases/{number}.then", f"{phase.then}\n")
        lines = "".join(f"export {name}='{value}'\n" for name, value in environment.items())
        _add_text(tar, "srv/run-environment", lines)


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(text.encode())
    tar.addfile(info, io.BytesIO(text.encode()))


def build_packages(scratch: Path) -> list[Path]:
    """Two Debian packages: of the commit before, where there is one, and of what is here now."""
    before = scratch / "before"
    before.mkdir()
    archive = subprocess.run(
        ["git", "archive", "HEAD~1"], cwd=ROOT, check=False, capture_output=True
    )
    source = ROOT
    if archive.returncode == 0:  # a shallow clone has no commit before its own
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(before, filter="data")
        source = before
    packages = []
    for revision, tree in (("1", source), ("2", ROOT)):
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools/build_deb.py"), "--source", str(tree),
             "--output", str(scratch), "--revision", revision],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        packages.append(Path(done.stdout.strip()))
    return packages
