"""The small Unix around the interpreter: programs, generated /etc, directories, time zones."""

from __future__ import annotations

import os
import posixpath
import shutil

from sandboxkernel.errors import ImageError
from sandboxkernel.images.hostpaths import is_public_file, plan_host_path, plan_host_tree
from sandboxkernel.images.interpreter import Interpreter
from sandboxkernel.images.treeplan import CopiedFile, Directory, GeneratedFile, Symlink, TreePlan

__all__ = [
    "CA_BUNDLE",
    "CONTAINER_UID",
    "HOME",
    "PROGRAMS",
    "PROGRAM_DIRS",
    "find_ca_bundle",
    "plan_directories",
    "plan_etc",
    "plan_programs",
    "plan_root_home",
]

CONTAINER_UID = 1000
HOME = "/home/sandbox"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
PROGRAM_DIRS = "/usr/bin:/bin:/usr/sbin:/sbin"
PROGRAMS = (
    "sh", "bash", "env", "ls", "cat", "cp", "mv", "rm", "mkdir", "rmdir", "ln", "chmod", "touch",
    "head", "tail", "wc", "sort", "uniq", "cut", "tr", "sed", "grep", "egrep", "fgrep", "find",
    "xargs", "tar", "gzip", "gunzip", "zcat", "sleep", "echo", "printf", "pwd", "test", "[",
    "true", "false", "id", "uname", "ps", "kill", "date", "du", "df", "which", "nproc",
    "dirname", "basename", "readlink", "realpath", "tee", "seq", "stat", "mktemp", "hostname",
    "whoami", "groups", "sha256sum", "md5sum", "diff", "cmp", "comm", "paste", "od", "less",
    "clear", "yes", "timeout", "awk", "mawk", "stty", "tty",
)  # fmt: skip
_NEEDED = frozenset({"sh", "env", "ls", "cat"})
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Debian, Fedora, openSUSE, Alpine: the bundle that the system's package made.
_CA_SOURCES = (
    CA_BUNDLE,
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_TERMINALS = ("ansi", "dumb", "linux", "screen", "screen-256color", "tmux", "tmux-256color",
              "vt100", "xterm", "xterm-256color", "xterm-color")  # fmt: skip
_ZONES = "/usr/share/zoneinfo"


def plan_directories(plan: TreePlan) -> None:
    """Plan the skeleton: merged /usr as on the host, mount points, places to write."""
    for name in _MERGED:
        if os.path.islink(f"/{name}"):
            target = os.readlink(f"/{name}")
            plan.add(f"/{name}", Symlink(target))
            plan.add(posixpath.normpath(f"/{target}"), Directory())
    for path in ("/proc", "/sys", "/dev", "/run", "/usr/local/bin"):
        plan.add(path, Directory())
    for path in ("/tmp", "/var/tmp"):
        plan.add(path, Directory(mode=0o1777))
    plan.add(HOME, Directory(uid=CONTAINER_UID, gid=CONTAINER_UID))


def plan_root_home(plan: TreePlan) -> None:
    """Plan root's empty home, last: with an interpreter below it everybody has to enter it."""
    plan.add("/root", Directory(mode=0o700))


def plan_programs(plan: TreePlan) -> None:
    """Plan the programs that the host has. Raises ImageError without a shell."""
    for name in PROGRAMS:
        path = shutil.which(name, path=PROGRAM_DIRS)
        if path is not None:
            plan_host_path(plan, path)
        elif name in _NEEDED:
            raise ImageError(f"cannot build the host image: no program {name} in {PROGRAM_DIRS}")
    for name in _TERMINALS:
        for base in ("/lib/terminfo", "/usr/share/terminfo", "/usr/lib/terminfo"):
            entry = f"{base}/{name[0]}/{name}"
            if os.path.isfile(entry):
                plan_host_path(plan, entry)
                break
    for name in ("C.utf8", "C.UTF-8"):  # glibc < 2.35 has no C.UTF-8 of its own
        source = f"/usr/lib/locale/{name}"
        if os.path.isdir(source):
            plan_host_tree(plan, source, source)
    if os.path.isdir(_ZONES):
        plan_host_tree(plan, _ZONES, _ZONES, skip_directories=frozenset({"posix", "right"}))


def find_ca_bundle() -> str | None:
    """The host's file of public certification authorities, if there is one."""
    for path in _CA_SOURCES:
        real = os.path.realpath(path)
        if is_public_file(real):
            return real
    return None


def plan_etc(plan: TreePlan, python: Interpreter) -> None:
    """Plan /etc: generated, but for the public certification authorities."""
    shell = "/bin/bash" if "/usr/bin/bash" in plan or "/bin/bash" in plan else "/bin/sh"
    for name, text in _etc_files(shell).items():
        plan.add(f"/etc/{name}", GeneratedFile(text.encode()))
    plan.add("/etc/localtime", Symlink(f"{_ZONES}/UTC"))
    if f"{_ZONES}/UTC" not in plan:
        plan.add(f"{_ZONES}/UTC", GeneratedFile(_UTC_ZONE))
    bundle = find_ca_bundle()
    if bundle is None:
        return
    plan.add(CA_BUNDLE, CopiedFile(bundle))
    # OpenSSL looks at a compiled-in path, which on Debian leads to a directory of hashed links.
    if python.cafile.startswith("/") and python.cafile != CA_BUNDLE:
        cafile = posixpath.normpath(python.cafile)
        parent = os.path.realpath(posixpath.dirname(cafile))
        plan.add(f"{parent}/{posixpath.basename(cafile)}", Symlink(CA_BUNDLE))


# A version 1 TZif file (RFC 8536) with one local time type, UTC.
_UTC_ZONE = (
    b"TZif" + b"\0" * 16 + b"".join(n.to_bytes(4, "big") for n in (0, 0, 0, 0, 1, 4))
    + b"\0\0\0\0\0\0" + b"UTC\0"
)  # fmt: skip


def _etc_files(shell: str) -> dict[str, str]:
    return {
        "passwd": (
            "root:x:0:0:root:/root:/usr/sbin/nologin\n"
            f"sandbox:x:{CONTAINER_UID}:{CONTAINER_UID}:sandbox:{HOME}:{shell}\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        ),
        "group": f"root:x:0:\nsandbox:x:{CONTAINER_UID}:\nnogroup:x:65534:\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        "hostname": "sandbox\n",
        "resolv.conf": "",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nnetworks: files\n"
        "protocols: files\nservices: files\n",
        "services": "http 80/tcp\nhttps 443/tcp\ndomain 53/tcp\ndomain 53/udp\nssh 22/tcp\n",
        "protocols": "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6 41 IPv6\n",
        "shells": "/bin/sh\n" + (f"{shell}\n" if shell != "/bin/sh" else ""),
        "os-release": (
            'NAME="sandboxkernel host image"\nID=sandboxkernel-host\n'
            'PRETTY_NAME="sandboxkernel host image (programs copied from the host)"\n'
        ),
    }
