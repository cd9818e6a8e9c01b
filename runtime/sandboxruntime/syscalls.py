"""System calls that the standard library lacks. The only module that uses ctypes.

Every function is a man-page function: same name, Python types, OSError with the errno on
failure, no decisions. Where os or signal have a call, use theirs.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import struct
from collections.abc import Callable
from typing import Any, Final

from sandboxruntime.errors import HostError

__all__ = [
    "AT_EMPTY_PATH",
    "AT_RECURSIVE",
    "CloneFlag",
    "FsconfigCommand",
    "MountAttr",
    "MountFlag",
    "MoveMountFlag",
    "OpenTreeFlag",
    "Resolve",
    "UmountFlag",
    "bpf_prog_attach",
    "bpf_prog_load",
    "bpf_prog_name",
    "bpf_prog_query",
    "capset",
    "clone3",
    "close_range",
    "fsconfig_create",
    "fsconfig_flag",
    "fsconfig_set_fd",
    "fsconfig_string",
    "fsmount",
    "fsopen",
    "keyctl_join_session_keyring",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "machine",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "openat2",
    "pidfd_send_signal_group",
    "pivot_root",
    "prctl",
    "seccomp_set_mode_filter",
    "setfsgid",
    "setfsuid",
    "setns",
    "umount2",
    "unshare",
]

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800


class CloneFlag(enum.IntFlag):
    """CLONE_* of clone(2), unshare(2) and setns(2)."""

    NEWNS = 0x00020000
    NEWCGROUP = 0x02000000
    NEWUTS = 0x04000000
    NEWIPC = 0x08000000
    NEWUSER = 0x10000000
    NEWPID = 0x20000000
    NEWNET = 0x40000000
    PIDFD = 0x00001000
    INTO_CGROUP = 0x200000000


class MountFlag(enum.IntFlag):
    """MS_* of mount(2)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    BIND = 4096
    REC = 16384
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20
    STRICTATIME = 1 << 24


class UmountFlag(enum.IntFlag):
    """MNT_* of umount2(2)."""

    DETACH = 2
    NOFOLLOW = 8


class MountAttr(enum.IntFlag):
    """MOUNT_ATTR_* of mount_setattr(2) and fsmount(2)."""

    RDONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    NOSYMFOLLOW = 0x200000
    IDMAP = 0x100000


class OpenTreeFlag(enum.IntFlag):
    """Flags of open_tree(2)."""

    CLONE = 1
    CLOEXEC = os.O_CLOEXEC


class MoveMountFlag(enum.IntFlag):
    """Flags of move_mount(2)."""

    F_EMPTY_PATH = 0x4
    T_EMPTY_PATH = 0x40


class FsconfigCommand(enum.IntEnum):
    """Commands of fsconfig(2)."""

    SET_FLAG = 0
    SET_STRING = 1
    SET_FD = 5
    CMD_CREATE = 6


class Resolve(enum.IntFlag):
    """RESOLVE_* of openat2(2)."""

    NO_XDEV = 0x01
    NO_MAGICLINKS = 0x02
    NO_SYMLINKS = 0x04
    BENEATH = 0x08
    IN_ROOT = 0x10


# From the Linux headers (asm/unistd_64.h, asm-generic/unistd.h); calls added since 5.0 share
# one number on every architecture.
_COMMON_NUMBERS: Final = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}
_NUMBERS: Final = {
    "x86_64": {"pivot_root": 155, "capset": 126, "seccomp": 317, "keyctl": 250,
               "setfsuid": 122, "setfsgid": 123, "bpf": 321},
    "aarch64": {"pivot_root": 41, "capset": 91, "seccomp": 277, "keyctl": 219,
                "setfsuid": 151, "setfsgid": 152, "bpf": 280},
}  # fmt: skip

_libc: Final = ctypes.CDLL(None, use_errno=True)
# PyDLL keeps the GIL: between clone3 and the return into Python nothing else may run.
_pylibc: Final = ctypes.PyDLL(None, use_errno=True)


def machine() -> str:
    """The architecture as uname(2) names it; HostError if this package has no numbers for it."""
    name = os.uname().machine
    if name not in _NUMBERS:
        raise HostError(f"unsupported machine {name!r}", feature="machine")
    return name


def _number(name: str) -> int:
    return _COMMON_NUMBERS.get(name) or _NUMBERS[machine()][name]


def _check(result: int, name: str, path: str | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}", path)
    return result


def _declare(name: str, *argtypes: Any) -> Callable[..., int]:
    # Indexing, not attribute access: CDLL caches attributes, so argtypes set on an attribute
    # would be shared with every other user of this CDLL object.
    function = _libc[name]
    function.argtypes, function.restype = argtypes, ctypes.c_int

    def call(*args: Any, path: str | None = None) -> int:
        return _check(function(*args), name, path)

    return call


def _declare_syscall(name: str, *argtypes: Any) -> Callable[..., int]:
    function = _libc["syscall"]
    function.argtypes = (ctypes.c_long, *argtypes)
    function.restype = ctypes.c_long
    number = _number(name)

    def call(*args: Any, path: str | None = None) -> int:
        return _check(function(number, *args), name, path)

    return call


def _encode(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


_int, _uint, _ulong = ctypes.c_int, ctypes.c_uint, ctypes.c_ulong
_str, _pointer = ctypes.c_char_p, ctypes.c_void_p

_mount = _declare("mount", _str, _str, _str, _ulong, _str)
_umount2 = _declare("umount2", _str, _int)
_unshare = _declare("unshare", _int)
_setns = _declare("setns", _int, _int)
_prctl = _declare("prctl", _int, _ulong, _ulong, _ulong, _ulong)
_pivot_root = _declare_syscall("pivot_root", _str, _str)
_capset = _declare_syscall("capset", _pointer, _pointer)
_seccomp = _declare_syscall("seccomp", _uint, _uint, _pointer)
_keyctl = _declare_syscall("keyctl", _int, _ulong, _ulong, _ulong, _ulong)
_bpf = _declare_syscall("bpf", _int, _pointer, _uint)
_setfsuid = _declare_syscall("setfsuid", _uint)
_setfsgid = _declare_syscall("setfsgid", _uint)
_open_tree = _declare_syscall("open_tree", _int, _str, _uint)
_move_mount = _declare_syscall("move_mount", _int, _str, _int, _str, _uint)
_setdomainname = _declare("setdomainname", ctypes.c_char_p, ctypes.c_size_t)
_fsopen = _declare_syscall("fsopen", _str, _uint)
_fsconfig = _declare_syscall("fsconfig", _int, _uint, _str, _pointer, _int)
_fsmount = _declare_syscall("fsmount", _int, _uint, _uint)
_mount_setattr = _declare_syscall("mount_setattr", _int, _str, _uint, _pointer, ctypes.c_size_t)
_openat2 = _declare_syscall("openat2", _int, _str, _pointer, ctypes.c_size_t)
_close_range = _declare_syscall("close_range", _uint, _uint, _uint)
_pidfd_send_signal = _declare_syscall("pidfd_send_signal", _int, _int, _pointer, _uint)
_landlock_create = _declare_syscall("landlock_create_ruleset", _pointer, ctypes.c_size_t, _uint)
_landlock_add = _declare_syscall("landlock_add_rule", _int, _int, _pointer, _uint)
_landlock_restrict = _declare_syscall("landlock_restrict_self", _int, _uint)


def mount(source: str | None, target: str, fstype: str | None = None,
          flags: MountFlag = MountFlag(0), data: str = "") -> None:  # fmt: skip
    """mount(2). Raises OSError with filename=target."""
    _mount(_encode(source), _encode(target), _encode(fstype), flags, _encode(data), path=target)


def umount2(target: str, flags: UmountFlag = UmountFlag(0)) -> None:
    """umount2(2)."""
    _umount2(_encode(target), flags, path=target)


def unshare(flags: CloneFlag) -> None:
    """unshare(2)."""
    _unshare(flags)


def setns(fd: int, flags: CloneFlag = CloneFlag(0)) -> None:
    """setns(2); `fd` is a namespace or a pidfd."""
    _setns(fd, flags)


def prctl(option: int, a2: int = 0, a3: int = 0, a4: int = 0, a5: int = 0) -> int:
    """prctl(2)."""
    return _prctl(option, a2, a3, a4, a5)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _pivot_root(_encode(new_root), _encode(put_old), path=new_root)


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    data = name.encode()
    _setdomainname(data, len(data))


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling thread; each argument is a 64-bit mask."""
    version_3 = 0x20080522
    header = struct.pack("Ii", version_3, 0)
    words = []
    for shift in (0, 32):
        words += [(mask >> shift) & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    _capset(header, struct.pack("6I", *words))


def seccomp_set_mode_filter(program: bytes, flags: int = 0) -> int:
    """seccomp(2) with SECCOMP_SET_MODE_FILTER; `program` is an array of struct sock_filter."""
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; }
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    return _seccomp(1, flags, fprog)


def keyctl_join_session_keyring() -> int:
    """keyctl(2) KEYCTL_JOIN_SESSION_KEYRING with no name: a new anonymous session keyring."""
    return _keyctl(1, 0, 0, 0, 0)


def bpf_prog_load(prog_type: int, attach_type: int, program: bytes, name: str) -> int:
    """bpf(2), BPF_PROG_LOAD. The descriptor is close-on-exec."""
    code, license_ = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16sII", prog_type, len(program) // 8, ctypes.addressof(code),
        ctypes.addressof(license_), 0, 0, 0, 0, 0, name.encode(), 0, attach_type,
    )  # fmt: skip
    return _bpf(5, attr, len(attr))


def bpf_prog_attach(cgroup_fd: int, prog_fd: int, attach_type: int, flags: int = 0) -> None:
    """bpf(2), BPF_PROG_ATTACH."""
    attr = struct.pack("=4I", cgroup_fd, prog_fd, attach_type, flags)
    _bpf(8, attr, len(attr))


def bpf_prog_query(cgroup_fd: int, attach_type: int) -> list[int]:
    """bpf(2), BPF_PROG_QUERY: ids of the programs of the cgroup itself, not of those above."""
    ids = (ctypes.c_uint32 * 64)()  # as many as Linux allows (BPF_CGROUP_MAX_PROGS)
    attr = ctypes.create_string_buffer(
        struct.pack("=4IQ2I", cgroup_fd, attach_type, 0, 0, ctypes.addressof(ids), len(ids), 0)
    )
    _bpf(16, attr, len(attr) - 1)
    return list(ids[: struct.unpack_from("=I", attr, 24)[0]])


def bpf_prog_name(prog_id: int) -> str:
    """The name of a loaded program: bpf(2), BPF_PROG_GET_FD_BY_ID and BPF_OBJ_GET_INFO_BY_FD."""
    fd = _bpf(13, struct.pack("=3I", prog_id, 0, 0), 12)
    try:
        info = ctypes.create_string_buffer(80)  # struct bpf_prog_info, as far as its name
        attr = struct.pack("=2IQ", fd, len(info), ctypes.addressof(info))
        _bpf(15, attr, len(attr))
    finally:
        os.close(fd)
    return info.raw[64:].split(b"\0")[0].decode()


def setfsuid(fsuid: int) -> int:
    """setfsuid(2). Returns the previous value; there is no error return, so read it back."""
    return _setfsuid(fsuid)


def setfsgid(fsgid: int) -> int:
    """setfsgid(2). Returns the previous value; there is no error return, so read it back."""
    return _setfsgid(fsgid)


def open_tree(dir_fd: int, path: str, flags: int) -> int:
    """open_tree(2). `flags` mixes OpenTreeFlag and AT_*. Returns an O_PATH descriptor."""
    return _open_tree(dir_fd, _encode(path), flags, path=path)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """move_mount(2)."""
    _move_mount(from_fd, _encode(from_path), to_fd, _encode(to_path), flags, path=to_path)


def fsopen(fstype: str) -> int:
    """fsopen(2) with FSOPEN_CLOEXEC."""
    return _fsopen(_encode(fstype), 1, path=fstype)


def fsconfig_flag(fs_fd: int, key: str) -> None:
    """fsconfig(2) FSCONFIG_SET_FLAG."""
    _fsconfig(fs_fd, FsconfigCommand.SET_FLAG, _encode(key), None, 0, path=key)


def fsconfig_string(fs_fd: int, key: str, value: str) -> None:
    """fsconfig(2) FSCONFIG_SET_STRING."""
    _fsconfig(fs_fd, FsconfigCommand.SET_STRING, _encode(key), _encode(value), 0,
              path=f"{key}={value}")  # fmt: skip


def fsconfig_set_fd(fs_fd: int, key: str, fd: int) -> None:
    """fsconfig(2) FSCONFIG_SET_FD."""
    _fsconfig(fs_fd, FsconfigCommand.SET_FD, _encode(key), None, fd, path=key)


def fsconfig_create(fs_fd: int) -> None:
    """fsconfig(2) FSCONFIG_CMD_CREATE. The filesystem's own words are added as a note."""
    try:
        _fsconfig(fs_fd, FsconfigCommand.CMD_CREATE, None, None, 0)
    except OSError as exc:
        try:
            while text := os.read(fs_fd, 4096):
                exc.add_note(text.decode(errors="replace").strip())
        except OSError as end:
            if end.errno != errno.ENODATA:  # ENODATA: no more messages (fsopen(2))
                raise
        raise


def fsmount(fs_fd: int, attributes: MountAttr = MountAttr(0)) -> int:
    """fsmount(2) with FSMOUNT_CLOEXEC. Returns the detached mount."""
    return _fsmount(fs_fd, 1, attributes)


def mount_setattr(
    dir_fd: int,
    path: str,
    *,
    flags: int = AT_EMPTY_PATH,
    attr_set: MountAttr = MountAttr(0),
    attr_clear: MountAttr = MountAttr(0),
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """mount_setattr(2)."""
    attr = struct.pack("4Q", attr_set, attr_clear, propagation, userns_fd)
    _mount_setattr(dir_fd, _encode(path), flags, attr, len(attr), path=path)


def openat2(dir_fd: int, path: str, flags: int, *, resolve: Resolve, mode: int = 0) -> int:
    """openat2(2). Retries EAGAIN, which a concurrent rename causes."""
    how = struct.pack("3Q", flags | os.O_CLOEXEC, mode, resolve)
    while True:
        try:
            return _openat2(dir_fd, _encode(path), how, len(how), path=path)
        except BlockingIOError:
            continue


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2)."""
    _close_range(first, last, flags)


def pidfd_send_signal_group(pidfd: int, signum: int) -> None:
    """pidfd_send_signal(2) with PIDFD_SIGNAL_PROCESS_GROUP (Linux 6.9)."""
    _pidfd_send_signal(pidfd, signum, None, 4)


def landlock_create_ruleset(attr: bytes | None, flags: int = 0) -> int:
    """landlock_create_ruleset(2). With None and flag 1 it returns the ABI version."""
    return _landlock_create(attr, len(attr) if attr else 0, flags)


def landlock_add_rule(ruleset_fd: int, rule_type: int, attr: bytes) -> None:
    """landlock_add_rule(2)."""
    _landlock_add(ruleset_fd, rule_type, attr, 0)


def landlock_restrict_self(ruleset_fd: int, flags: int = 0) -> None:
    """landlock_restrict_self(2)."""
    _landlock_restrict(ruleset_fd, flags)


def clone3(flags: CloneFlag, *, cgroup_fd: int = -1) -> tuple[int, int]:
    """clone3(2) that behaves as os.fork(): (pid, pidfd) in the parent, (0, -1) in the child.

    The call goes through PyDLL, so the GIL stays held, and is bracketed by the interpreter's
    own fork hooks, as os.fork() is: without them the child would inherit import and allocator
    locks in an undefined state. glibc's atfork handlers do not run; the caller has one thread,
    so no libc lock can be held by another. clone3 has no libc wrapper to do this for us, and
    fork(2) cannot make a child in a new PID namespace atomically with its pidfd.
    """
    pidfd = ctypes.c_int(-1)
    exit_signal = 17  # SIGCHLD
    into_cgroup = CloneFlag.INTO_CGROUP if cgroup_fd >= 0 else CloneFlag(0)
    arguments = struct.pack(
        "11Q",
        flags | CloneFlag.PIDFD | into_cgroup,
        ctypes.addressof(pidfd),
        0, 0, exit_signal, 0, 0, 0, 0, 0,
        max(cgroup_fd, 0),
    )  # fmt: skip
    syscall = _pylibc["syscall"]
    syscall.argtypes = (ctypes.c_long, ctypes.c_char_p, ctypes.c_size_t)
    syscall.restype = ctypes.c_long
    number = _number("clone3")
    before, after_parent, after_child = (
        ctypes.pythonapi["PyOS_BeforeFork"],
        ctypes.pythonapi["PyOS_AfterFork_Parent"],
        ctypes.pythonapi["PyOS_AfterFork_Child"],
    )
    for hook in (before, after_parent, after_child):
        hook.restype = None
    before()
    pid = syscall(number, arguments, len(arguments))
    code = ctypes.get_errno()
    if pid == 0:
        after_child()
        return 0, -1
    after_parent()
    if pid < 0:
        raise OSError(code, f"clone3: {os.strerror(code)}")
    return pid, pidfd.value
