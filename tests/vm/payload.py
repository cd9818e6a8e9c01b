"""What one run adds to the image: this repository as it is now, and what to run. A tar file."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["write_payload"]

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "srv/repository"


def write_payload(path: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Write a tar file for the guest to unpack over its root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    names = sorted(set(listed.stdout.decode().rstrip("\0").split("\0")))
    with tarfile.open(path, "w") as tar:
        for name in names:
            if (ROOT / name).exists():  # deleted, and not yet committed
                tar.add(ROOT / name, f"{REPOSITORY}/{name}", filter=_as_root)
        _add_text(tar, "srv/run-arguments", "".join(f"{a}\n" for a in arguments))
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
