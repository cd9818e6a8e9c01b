"""The virtual machine's disk: Debian with systemd, its cloud kernel, and what the tests need.

Made without loop devices or a running machine, and kept under a digest of everything that it is
made of but this repository's code, which travels with each run (payload.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GUEST_VENV", "Image", "ensure_image"]

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sandboxkernel-vm"
SUITE, GUEST_PYTHON = "bookworm", "3.11"
MIRROR = os.environ.get("SANDBOXKERNEL_VM_MIRROR", "")
PACKAGES = (
    "linux-image-cloud-amd64", "initramfs-tools",
    "systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps", "iproute2",
    "python3", "python3-venv",
    "gcc", "libc6-dev", "git",  # what tests run in sandboxes
    "runc", "golang-github-opencontainers-specs-dev", "bubblewrap",
)  # fmt: skip
# Checked on the host: nothing of the machine's.
NOT_NEEDED = ("mypy", "ruff", "schemathesis>=4")
ALSO_NEEDED = ("jupyter_server",)  # of tests/conformance; on the host it comes with JupyterLab
GUEST_VENV = "/opt/jupyter"
GUEST_IMAGES = "var/tmp/sandboxkernel-tests/images"  # the tests' image store (tests/support.py)
DISK_SIZE = "4G"  # sparse
# Debian's cloud kernel has ext4 built in; the disk it lies on is a module.
DISK_MODULES = "virtio_pci\nvirtio_blk\n"
# Timers and terminals that would compete with the tests for an emulated processor.
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "systemd-tmpfiles-clean.timer",
    "getty@tty1.service", "serial-getty@ttyS0.service", "serial-getty@ttyS1.service",
    "systemd-networkd.service", "systemd-timesyncd.service",
)  # fmt: skip
FILES = {
    "etc/fstab": "/dev/vda / ext4 rw,noatime 0 1\n",
    "etc/hostname": "sandboxkernel-vm\n",
    "etc/hosts": "127.0.0.1 localhost sandboxkernel-vm\n",
}
# The newest C library that wheels may ask for is Debian 12's, 2.36.
_PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in range(36, 4, -1)] + [
    "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Image:
    """A disk with its kernel. Read-only: a machine writes to a snapshot of its own."""

    disk: Path
    kernel: Path
    initrd: Path


def ensure_image() -> Image:
    """The image, built when there is none of today's inputs. Minutes; needs root."""
    CACHE.mkdir(parents=True, exist_ok=True)
    directory = CACHE / _digest()
    with _locked(CACHE / "lock"):
        if not directory.exists():
            for old in CACHE.glob("image-*"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="build-") as scratch:
                _build(Path(scratch))
                (Path(scratch) / "image").rename(directory)
    return Image(directory / "disk.ext4", directory / "vmlinuz", directory / "initrd.img")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest() -> str:
    digest = hashlib.sha256()
    # The host image that is built ahead depends on the code that builds it.
    for path in (
        Path(__file__), ROOT / "pyproject.toml", ROOT / "tests/vm/guest/vm-tests.service",
        *sorted((ROOT / "sandboxkernel/images").glob("*.py")),
    ):  # fmt: skip
        digest.update(path.read_bytes())
    return f"image-{digest.hexdigest()[:16]}"


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"],
            *(r for r in project["optional-dependencies"]["test"] if r not in NOT_NEEDED),
            *ALSO_NEEDED]  # fmt: skip


def _run(argv: Sequence[str], *, cwd: Path | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.stderr.write(done.stdout.decode(errors="replace"))
        raise SystemExit(f"cannot make the virtual machine: {argv[0]} exited {done.returncode}")


def _say(text: str) -> None:
    print(f"vm image: {text}", flush=True)


def _build(scratch: Path) -> None:
    tree, made = scratch / "tree", scratch / "image"
    made.mkdir()
    _say(f"Debian {SUITE}")
    _run(
        [
            # In a mount namespace of its own: whatever happens to it, its mounts end with it, and
            # the scratch directory can be deleted.
            "unshare", "--mount",
            "mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")),
            # Before the kernel is unpacked, whose installation makes the initrd.
            "--essential-hook=mkdir -p $1/etc/initramfs-tools/conf.d "
            "$1/usr/share/initramfs-tools/modules.d",
            "--essential-hook=echo MODULES=list > $1/etc/initramfs-tools/conf.d/vm",
            f"--essential-hook=printf '{DISK_MODULES}' "
            "> $1/usr/share/initramfs-tools/modules.d/vm",
            SUITE, str(tree), *([MIRROR] if MIRROR else []),
        ]
    )  # fmt: skip
    _configure(tree)
    _say("Python packages")
    _install_packages(tree)
    _say("the host image that sandboxes run on")
    _chroot(tree, f"{GUEST_VENV}/bin/python", "-c", _HOST_IMAGE, f"/{GUEST_IMAGES}")
    for name in ("vmlinuz", "initrd.img"):
        (found,) = (tree / "boot").glob(f"{name}-*")
        shutil.copy(found, made / name)
    _say("disk")
    _run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(made / "disk.ext4"), DISK_SIZE])


_HOST_IMAGE = """
import sys
from pathlib import Path
from sandboxkernel.images.hostimage import ensure_host_image
from sandboxkernel.images.store import ImageStore
ensure_host_image(ImageStore(Path(sys.argv[1])))
"""


def _configure(tree: Path) -> None:
    for name, text in FILES.items():
        (tree / name).write_text(text)
    (tree / "etc/machine-id").write_text("")  # made at boot
    unit = "vm-tests.service"
    shutil.copy(Path(__file__).parent / "guest" / unit, tree / "etc/systemd/system")
    _chroot(tree, "systemctl", "--quiet", "mask", *MASKED)
    _chroot(tree, "systemctl", "--quiet", "enable", unit)
    _chroot(tree, "systemctl", "--quiet", "set-default", "multi-user.target")


def _install_packages(tree: Path) -> None:
    """Downloaded by the host's pip, with the host's settings, for the guest's Python."""
    wheels = tree / "wheels"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "download", "--only-binary=:all:", "--implementation=cp",
          f"--python-version={GUEST_PYTHON}", *(f"--platform={name}" for name in _PLATFORMS),
          f"--dest={wheels}", *_requirements()])  # fmt: skip
    _run([*pip, "wheel", "--no-deps", f"--wheel-dir={wheels}", str(ROOT)], cwd=tree)
    _chroot(tree, "python3", "-m", "venv", GUEST_VENV)
    _chroot(tree, f"{GUEST_VENV}/bin/pip", "install", "--quiet", "--no-index", "--find-links=/wheels",
            "sandboxkernel", *_requirements())  # fmt: skip
    shutil.rmtree(wheels)


def _chroot(tree: Path, *argv: str) -> None:
    # No variable of the host's: its Python and pip are none of the guest's business.
    _run(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
          "chroot", str(tree), *argv])  # fmt: skip
