"""Attacks as Python source, run inside a container by the image's interpreter.

Each prints ESCAPED when it got what it must not get, or `refused <errno name>`. None does harm
where it succeeds: the control runs prove that it would have.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandboxruntime.steps import Step

PRELUDE = """
import ctypes, errno, os, socket, stat, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    # A plain int goes as 32 bits, and above them on the stack is whatever was there.
    args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = libc.syscall(ctypes.c_long(number), *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
# Attack code never runs on the bare host.
assert not os.path.exists("/proc/1/root/etc/shadow") and os.getpid() < 100, "not in a container"
def attack():
{body}
try:
    outcome = attack()
except OSError as error:
    print("refused", errno.errorcode.get(error.errno, error.errno))
else:
    print("ESCAPED" if outcome is None or outcome else "refused nothing")
"""

# Without these three an attack that needs privilege has none: the control drops them together.
PRIVILEGE = (Step.CAPABILITIES, Step.SECCOMP, Step.LANDLOCK, Step.NO_NEW_PRIVS)


@dataclass(frozen=True)
class Attack:
    """`without` are the steps that the control leaves out; with none there is no control run here.

    `keep_capabilities` leaves full capabilities in the control, in the container's own user
    namespace.
    """

    name: str
    body: str
    without: tuple[Step, ...] = (Step.SECCOMP,)
    keep_capabilities: bool = False
    expected: tuple[str, ...] = ("EPERM",)

    def source(self) -> str:
        lines = "\n".join("    " + line for line in self.body.strip().splitlines())
        return PRELUDE.format(body=lines)


SECCOMP_ONLY = (
    Attack("make a user namespace", "call(272, 0x10000000)"),
    Attack("clone into a user namespace", "pid = call(56, 0x10000000 | 17, 0, 0, 0, 0)\nif pid == 0: os._exit(0)"),
    Attack("clone3", "pid = call(435, struct.pack('8Q', 0, 0, 0, 0, 17, 0, 0, 0), 64)\nif pid == 0: os._exit(0)",
           expected=("ENOSYS",)),
    Attack("keyctl", "call(250, 0, -3, 1)"),
    Attack("add a key", "call(248, b'user', b'x', b'y', 1, -3)", expected=("EPERM", "ENOSYS")),
    Attack("ptrace a child", """
pid = os.fork()
if pid == 0:
    import time; time.sleep(20); os._exit(0)
try:
    call(101, 16, pid, 0, 0)
finally:
    os.kill(pid, 9)
"""),
    Attack("read another process's memory", """
buffer = ctypes.create_string_buffer(8)
local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
call(310, os.getpid(), ctypes.byref(local), 1, ctypes.byref(local), 1, 0)
"""),
    Attack("io_uring", "call(425, 4, ctypes.create_string_buffer(120))", expected=("ENOSYS",)),
    Attack("userfaultfd", "call(323, 1)"),
    Attack("an AF_ALG socket", "socket.socket(38, socket.SOCK_SEQPACKET)", without=(), expected=("EAFNOSUPPORT",)),
    Attack("an AF_VSOCK socket", "socket.socket(40, socket.SOCK_STREAM)", expected=("EAFNOSUPPORT",)),
    Attack("an AF_PACKET socket", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", without=(Step.SECCOMP,),
           keep_capabilities=True, expected=("EAFNOSUPPORT", "EPERM")),
    Attack("a netfilter socket", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)",
           expected=("EAFNOSUPPORT", "EPROTONOSUPPORT", "EPERM")),
    Attack("a raw IP socket", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", keep_capabilities=True,
           expected=("EPERM", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT")),
    Attack("set-user-id on a file", "open('/tmp/s', 'w').close(); os.chmod('/tmp/s', 0o4755)"),
    Attack("set-user-id at creation", "os.open('/tmp/s2', os.O_CREAT | os.O_WRONLY, 0o4755)"),
    Attack("set-group-id by fchmodat", "open('/tmp/s', 'w').close(); call(268, -100, b'/tmp/s', 0o2755)"),
    Attack("vmsplice of a pipe", """
read, write = os.pipe()
buffer = ctypes.create_string_buffer(16)
call(278, write, struct.pack("QQ", ctypes.addressof(buffer), 16), 1, 0)
"""),
    Attack("splice from a shared file", """
read, write = os.pipe()
fd = os.open('/usr/bin/sh', os.O_RDONLY)
call(275, fd, ctypes.byref(ctypes.c_longlong(0)), write, None, 16, 0)
"""),
    Attack("a memory map of the page cache", "call(27, ctypes.c_void_p(0), 0, ctypes.create_string_buffer(8))"),
    Attack("push input to a terminal", """
master, slave = os.openpty()
import fcntl
os.setsid() if os.getsid(0) != os.getpid() else None
fcntl.ioctl(slave, 0x540E, 0)
fcntl.ioctl(slave, 0x5412, b'x')
""", keep_capabilities=True),
    Attack("personality READ_IMPLIES_EXEC", "call(135, 0x0400000)"),
)  # fmt: skip

NEEDS_CAPABILITY = (
    Attack("mount a tmpfs", "call(165, b'x', b'/tmp', b'tmpfs', 0, 0)"),
    Attack("make /proc/sys writable", "call(165, None, b'/proc/sys', None, 32 | 4096 | 2 | 4 | 8, 0)"),
    Attack("mount the cgroup hierarchy", "os.mkdir('/tmp/cg'); call(165, b'x', b'/tmp/cg', b'cgroup2', 0, 0)"),
    Attack("unmount a mask", "call(166, b'/proc/keys', 2)"),
    Attack("set the host name", "socket.sethostname('pwned')"),
    Attack("chroot", "os.chroot('/tmp')"),
    Attack("bring an interface down", """
import fcntl
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(s, 0x8914, struct.pack('16sH14x', b'lo', 0))
"""),
    Attack("setuid to inside root", "os.setresuid(0, 0, 0)"),
    Attack("give a file away", "open('/tmp/g', 'w').close(); os.chown('/tmp/g', 0, 0)"),
    Attack("write to the image's programs", "os.open('/usr/bin/pwned', os.O_CREAT | os.O_WRONLY)",
           expected=("EACCES",)),
)  # fmt: skip

NO_PRIVILEGE_NEEDED = (
    Attack("write to the interpreter", "os.open('/proc/self/exe', os.O_WRONLY)", without=(),
           expected=("EACCES", "ETXTBSY", "EROFS")),
    Attack("look at pid 1's program", "os.readlink('/proc/1/exe')", without=(), expected=("EACCES", "EPERM")),
    Attack("look at pid 1's memory", "os.open('/proc/1/mem', os.O_RDONLY)", without=(), expected=("EACCES", "EPERM")),
    Attack("look at pid 1's environment", "os.open('/proc/1/environ', os.O_RDONLY)", without=(), expected=("EACCES", "EPERM")),
    Attack("look at pid 1's root", "os.listdir('/proc/1/root/')", without=(), expected=("EACCES", "EPERM")),
    Attack("look at pid 1's descriptors", "os.listdir('/proc/1/fd')", without=(), expected=("EACCES", "EPERM")),
)  # fmt: skip
