"""What the inside of a sandbox can see and do, as one JSON document on stdout.

One file, standard library, x86-64: it runs with whatever python3 the sandbox has. It asks and
does not take: calls get arguments that are of no use, files are opened and closed, nothing is
written but to files that it makes itself, and it never runs on the bare host (`refuse`).

The driver gives in the environment: AUDIT_HOST_PIDNS (the host's PID namespace, as readlink shows
it), AUDIT_CONTAINER=1 where there is no user namespace, AUDIT_TCP and AUDIT_ABSTRACT (listeners
of the host's).
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys

LAST_SYSCALL = 470
LAST_FAMILY = 45
LAST_NETLINK = 22
SOCKET_TYPES = {
    1: "STREAM",
    2: "DGRAM",
    3: "RAW",
    4: "RDM",
    5: "SEQPACKET",
    6: "DCCP",
    10: "PACKET",
}
BLOCKED_S = 0.3  # a call that has not returned by then waits for something
GIVE_UP_S = 5.0  # and one that its own timer does not end is killed
FULL_IDENTITY = ["0", "0", "4294967295"]
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
FLAGS = {
    "NEWTIME": 0x80, "NEWNS": 0x20000, "NEWCGROUP": 0x2000000, "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000, "NEWUSER": 0x10000000, "NEWPID": 0x20000000, "NEWNET": 0x40000000,
}  # fmt: skip
SYSTEM_FOLDERS = ("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/mnt", "/opt", "/proc", "/root",
                  "/run", "/sbin", "/srv", "/sys", "/sys/fs/cgroup", "/usr", "/usr/bin", "/usr/lib",
                  "/usr/local/bin", "/var", "/var/lib")  # fmt: skip
TMP = "/tmp"

libc = ctypes.CDLL(None, use_errno=True)


def refuse() -> None:
    """End unless this is a container: never a word of what follows on the bare host."""
    host = os.environ.get("AUDIT_HOST_PIDNS", "")
    if not host or os.readlink("/proc/self/ns/pid") == host:
        sys.exit("probe: this is the host's PID namespace")
    with open("/proc/self/uid_map", encoding="ascii") as stream:
        identity = stream.read().split() == FULL_IDENTITY
    if identity and (os.environ.get("AUDIT_CONTAINER") != "1" or os.getpid() >= 100):
        sys.exit("probe: this is the host's user namespace, and no container")


def call(number, *args):
    """A system call by its number; plain ints as whole registers."""
    long_args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *long_args)
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), "")
    return result


def forked(action) -> str:
    """What became of `action` in a process of its own: "ok", an errno, a signal, "blocked"."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _child(action, write)
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], GIVE_UP_S)
        said = os.read(read, 64).decode() if ready else ""
    finally:
        os.close(read)
    if not said and not ready:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if said or not os.WIFSIGNALED(status):
        return said or "gone"
    number = os.WTERMSIG(status)
    if number in (signal.SIGALRM, signal.SIGKILL):
        return "blocked"
    return signal.Signals(number).name


def _child(action, write: int) -> None:
    me, said = os.getpid(), "ok"
    try:
        os.setsid()  # no terminal that a call could take or hang up
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, BLOCKED_S)
        action()
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error.errno))
    except BaseException as error:
        said = type(error).__name__
    if os.getpid() == me:  # not the child that the call may have made
        os.write(write, said.encode())
    os._exit(0)


# --- system calls

BUFFER = ctypes.create_string_buffer(4096)
# Arguments for calls that six times -1 would end, or have answered for their arguments alone, as
# ENOSYS or EPERM. Everything else gets -1: no descriptor, no address, no flag, no size.
ARGUMENTS = {
    2: (-1, 0, 0),  # open: a mode of -1 has the set-user-id bit
    41: (1, 1, 0),  # socket
    53: (1, 1, 0, -1),  # socketpair
    56: (17, 0, 0, 0, 0),  # clone: SIGCHLD
    57: (), 39: (),
    62: (0x7FFFFFF0, 0),  # kill: nobody, no signal
    83: (-1, 0o700), 85: (-1, 0o600), 90: (-1, 0o600), 91: (-1, 0o600), 133: (-1, 0o600, 0),
    135: (0xFFFFFFFF,),  # personality: only tell
    103: (10, 0, 0),  # syslog: size of the buffer
    154: (0, BUFFER, 0),  # modify_ldt: read
    157: (3, 0, 0, 0, 0),  # prctl: PR_GET_DUMPABLE
    202: (BUFFER, 1, 0, 0, 0, 0),  # futex: wake
    257: (-1, -1, 0, 0), 258: (-1, -1, 0o700), 259: (-1, -1, 0o600, 0), 268: (-1, -1, 0o600),
    272: (0,),  # unshare nothing
    452: (-1, -1, 0o600, 0),
}  # fmt: skip
VFORK = 58


def machine_code(code: bytes):
    """A function of machine code that returns rax."""
    area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    function = ctypes.CFUNCTYPE(ctypes.c_long)(address)
    function.area = area
    return function


def checked(result: int) -> None:
    """A raw result of Linux, errors as negative numbers."""
    if -4096 < result < 0:
        raise OSError(-result, "")


def vfork() -> None:
    """vfork(2), whose child must not return: mov eax,58; syscall; test; jnz; exit(0); ret."""
    checked(machine_code(
        b"\xb8\x3a\0\0\0\x0f\x05\x85\xc0\x75\x09\x31\xff\xb8\x3c\0\0\0\x0f\x05\xc3"
    )())  # fmt: skip


def int80() -> None:
    """getpid(2) through the 32-bit table: mov eax,20; int 0x80; ret."""
    checked(machine_code(b"\xb8\x14\0\0\0\xcd\x80\xc3")())


def syscalls() -> dict:
    """The verdict of every call, by its number."""
    found = {}
    for number in range(LAST_SYSCALL + 1):
        arguments = ARGUMENTS.get(number, (-1,) * 6)
        action = vfork if number == VFORK else lambda n=number, a=arguments: call(n, *a)
        found[str(number)] = forked(action)
    return found


def flags() -> dict:
    """Each namespace by unshare(2), clone(2) and clone3(2)."""
    found = {}
    for name, flag in FLAGS.items():
        found[f"unshare {name}"] = forked(lambda f=flag: call(272, f))
        if name != "NEWTIME":  # its bit is part of clone's signal
            found[f"clone {name}"] = forked(lambda f=flag: call(56, f | 17, 0, 0, 0, 0))
        request = struct.pack("8Q", flag, 0, 0, 0, 17, 0, 0, 0)
        found[f"clone3 {name}"] = forked(lambda r=request: call(435, r, len(r)))
    return found


# --- single acts that need an argument of their own


def _own(name: str) -> str:
    return f"{TMP}/audit-{os.getpid()}-{name}"


def _setuid_file() -> None:
    path = _own("s")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    try:
        call(90, path.encode(), 0o4755)
    finally:
        os.unlink(path)


def _sti() -> None:
    _, slave = os.openpty()
    fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY
    fcntl.ioctl(slave, 0x5412, b"x")


def _ptrace() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        call(101, 0x4206, pid, 0, 0)  # PTRACE_SEIZE
    finally:
        os.kill(pid, signal.SIGKILL)


def _read_memory() -> None:
    vector = struct.pack("2Q", ctypes.addressof(BUFFER), 8)
    call(310, os.getppid(), vector, 1, vector, 1, 0)


def _splice() -> None:
    fd, (_, write) = os.open(os.path.realpath(sys.executable), os.O_RDONLY), os.pipe()
    call(275, fd, ctypes.byref(ctypes.c_longlong(0)), write, 0, 16, 0)


def _vmsplice() -> None:
    _, write = os.pipe()
    call(278, write, struct.pack("2Q", ctypes.addressof(BUFFER), 16), 1, 0)


def _perf() -> None:
    attributes = struct.pack("IIQ", 1, 120, 0) + bytes(24) + struct.pack("Q", 0x61) + bytes(72)
    call(298, attributes, 0, -1, -1, 0)  # a software clock of this process, user code alone


def _mknod(mode: int, device: int, look: bool) -> None:
    path = _own("d")
    os.mknod(path, mode | 0o600, device)
    try:
        if look:
            os.close(os.open(path, os.O_RDONLY))
    finally:
        os.unlink(path)


def _configure() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        now = fcntl.ioctl(sock, 0x8913, struct.pack("16sH14x", b"lo", 0))
        fcntl.ioctl(sock, 0x8914, now)  # SIOCSIFFLAGS: as they are


def _connect(family: int, address) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(BLOCKED_S / 2)
        sock.connect(address)


def _host_name() -> None:
    name = os.uname().nodename.encode()
    call(170, name, len(name))


def _execute(kind: int) -> None:
    flags = kind | mmap.MAP_PRIVATE
    mmap.mmap(-1, 4096, flags=flags | mmap.MAP_ANONYMOUS, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)


ACTS = {
    "make a file set-user-id": _setuid_file,
    "type into a terminal (TIOCSTI)": _sti,
    "trace a child": _ptrace,
    "read the memory of the parent": _read_memory,
    "splice a file's pages into a pipe": _splice,
    "vmsplice pages into a pipe": _vmsplice,
    "open a performance counter": _perf,
    "join a session keyring": lambda: call(250, 1, 0),
    "add a key": lambda: call(248, b"user", b"audit", b"x", 1, -1),
    "set up io_uring": lambda: call(425, 4, ctypes.create_string_buffer(120)),
    "userfaultfd, user mode": lambda: call(323, 1),
    "a memfd_secret": lambda: call(447, 0),
    "executable memory": lambda: _execute(0),
    "personality READ_IMPLIES_EXEC": lambda: call(135, 0x0400000),
    "personality ADDR_NO_RANDOMIZE": lambda: call(135, 0x0040000),
    "prctl PR_SET_SYSCALL_USER_DISPATCH off": lambda: call(157, 59, 0, 0, 0, 0),
    "prctl PR_SET_MM": lambda: call(157, 35, 1, 0, 0, 0),
    "the 32-bit table (int 0x80)": int80,
    "the x32 table": lambda: call(0x40000000 | 39),
    "become uid 0": lambda: os.setresuid(0, 0, 0),
    "become another uid": lambda: os.setresuid(12345, 12345, 12345),
    "change the groups": lambda: os.setgroups([12345]),
    "lower the niceness": lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    "real-time scheduling": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "chroot": lambda: os.chroot(TMP),
    "set the host name": _host_name,
    "mount a tmpfs": lambda: call(165, b"audit", TMP.encode(), b"tmpfs", 0, 0),
    "configure a network interface": _configure,
    "a raw IP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
    "a ping socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1).close(),
    "bind a port below 1024": lambda: socket.socket().bind(("127.0.0.1", 80)),
    "make a character device": lambda: _mknod(stat.S_IFCHR, os.makedev(1, 3), look=False),
    "make and open a character device": lambda: _mknod(stat.S_IFCHR, os.makedev(1, 3), look=True),
    "make a block device": lambda: _mknod(stat.S_IFBLK, os.makedev(7, 0), look=False),
    "read the kernel's log": lambda: call(103, 3, BUFFER, 64),
    "connect to the host's loopback, IPv4": lambda: _connect(
        socket.AF_INET, ("127.0.0.1", int(os.environ["AUDIT_TCP"]))),
    "connect to the host's loopback, IPv6": lambda: _connect(
        socket.AF_INET6, ("::1", int(os.environ["AUDIT_TCP"]))),
    "connect to the host's abstract socket": lambda: _connect(
        socket.AF_UNIX, "\0" + os.environ["AUDIT_ABSTRACT"]),
}  # fmt: skip


def sockets() -> dict:
    """Every family and type, and every protocol of netlink."""
    found = {}
    for family in range(LAST_FAMILY + 1):
        for kind, name in SOCKET_TYPES.items():
            key = f"{_family(family)} {name}"
            found[key] = forked(lambda f=family, k=kind: os.close(call(41, f, k, 0)))
    for protocol in range(1, LAST_NETLINK + 1):
        key = f"NETLINK protocol {protocol}"
        found[key] = forked(lambda p=protocol: os.close(call(41, 16, 3, p)))
    return found


def _family(number: int) -> str:
    try:
        return socket.AddressFamily(number).name.removeprefix("AF_")
    except ValueError:
        return str(number)


# --- files


def opened(path: str, mode: int) -> bool:
    """Whether a file can be opened; one that is covered by /dev/null cannot."""
    try:
        fd = os.open(path, mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    found = os.fstat(fd)
    os.close(fd)
    return not (stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3))


def entries(top: str) -> dict:
    """Files below `top` that open for reading, and for writing; of /proc one process alone."""
    read, write = [], []
    for folder, folders, files in os.walk(top):
        if folder == "/proc":
            folders[:] = [name for name in folders if not name.isdigit()] + ["self"]
        if folder == "/proc/self":
            folders[:] = [name for name in folders if name in ("attr", "net")]
        for name in files:
            path = f"{folder.rstrip('/')}/{name}"
            if os.path.islink(path):
                continue
            if opened(path, os.O_RDONLY):
                read.append(path)
            if opened(path, os.O_WRONLY):
                write.append(path)
    return {"read": sorted(set(read)), "write": sorted(set(write))}


def devices() -> dict:
    """Device nodes below /dev and how they open. A watchdog that is opened starts to count."""
    found = {}
    for folder, _, names in os.walk("/dev"):
        for name in names:
            path = f"{folder}/{name}"
            kind = os.lstat(path)
            if not (stat.S_ISCHR(kind.st_mode) or stat.S_ISBLK(kind.st_mode)):
                continue
            if (folder == "/dev/pts" and name.isdigit()) or name.startswith("watchdog"):
                continue
            flags = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            how = []
            for mode, word in ((os.O_RDONLY, "r"), (os.O_WRONLY, "w")):
                try:
                    os.close(os.open(path, mode | flags))
                    how.append(word)
                except OSError as error:
                    # /dev/tty without a terminal
                    how += [word] if error.errno == errno.ENXIO else []
            found[path] = "".join(how)
    return found


def writable() -> list:
    """System folders in which a file can be made; it is removed at once."""
    found = []
    for folder in SYSTEM_FOLDERS:
        path = f"{folder.rstrip('/')}/.audit-{os.getpid()}"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            os.unlink(path)
            found.append(folder)
        except OSError:
            continue
    return found


# --- what is to be read


def text(path: str, limit: int = 1 << 16) -> str:
    """The beginning of a file; empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(limit)
    except OSError:
        return ""


def status() -> dict:
    """/proc/self/status, and securebits."""
    lines = [line.split(":", 1) for line in text("/proc/self/status").splitlines()]
    found = {name: value.strip() for name, value in lines}
    found["Securebits"] = str(libc.prctl(27, 0, 0, 0, 0))
    return found


def namespaces() -> dict:
    found = {}
    for name in NAMESPACES:
        try:
            found[name] = os.readlink(f"/proc/self/ns/{name}")
        except OSError as error:
            found[name] = errno.errorcode.get(error.errno or 0, "")
    return found


def rlimits() -> dict:
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {name: list(resource.getrlimit(getattr(resource, name))) for name in names}


def interfaces() -> list:
    try:
        return socket.if_nameindex()
    except OSError:
        return []  # no netlink


def disclosed() -> dict:
    """Facts that may be the host's; the driver knows which are."""
    processes = [name for name in os.listdir("/proc") if name.isdigit()]
    return {
        "hostname": os.uname().nodename,
        "domainname": text("/proc/sys/kernel/domainname").strip(),
        "release": os.uname().release,
        "boot_id": text("/proc/sys/kernel/random/boot_id").strip(),
        "uptime": text("/proc/uptime").split()[:1],
        "cmdline": text("/proc/cmdline").strip(),
        "processes": len(processes),
        "init": text("/proc/1/comm").strip(),
        "partitions": [line.split()[3] for line in text("/proc/partitions").splitlines()[2:]],
        "memory": text("/proc/meminfo").partition("\n")[0],
        "swaps": text("/proc/swaps").splitlines()[1:],
        "loadavg": text("/proc/loadavg").split()[:3],
        "processor": [line for line in text("/proc/cpuinfo").splitlines() if "model name" in line][:1],
        "processors": os.cpu_count(),
        "addresses": sorted({text(f"/sys/class/net/{name}/address").strip()
                             for _, name in interfaces()} - {""}),
        "kallsyms": any(int(line.split()[0], 16) for line in text("/proc/kallsyms").splitlines()[:9]),
        "unix sockets": len(text("/proc/net/unix", 1 << 20).splitlines()[1:]),
        "tcp sockets": len(text("/proc/net/tcp").splitlines()[1:]),
        "routes": len(text("/proc/net/route").splitlines()[1:]),
        "diskstats": len(text("/proc/diskstats").splitlines()),
        "cgroup": text("/proc/self/cgroup").splitlines(),
    }  # fmt: skip


def main() -> None:
    refuse()
    report = {
        "status": status(),
        "uid_map": text("/proc/self/uid_map").split(),
        "ids": [os.getuid(), os.getgid(), os.getgroups()],
        "namespaces": namespaces(),
        "mountinfo": text("/proc/self/mountinfo", 1 << 20).splitlines(),
        "rlimits": rlimits(),
        "interfaces": sorted(name for _, name in interfaces()),
        "disclosed": disclosed(),
        "devices": devices(),
        "writable": writable(),
        "proc": entries("/proc"),
        "sys": entries("/sys"),
        "syscalls": syscalls(),
        "flags": flags(),
        "acts": {name: forked(action) for name, action in ACTS.items()},
        "sockets": sockets(),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
