"""Attacks that need no privilege: the system call filter alone is in their way."""

from __future__ import annotations

from tests.escape.attacks.model import PRIVILEGED, Attack

__all__ = ["ATTACKS"]

F1, F2, F4 = "F1", "F2", "F4"
LINUX_REFUSES = "Linux itself refuses it here: "

ATTACKS = (
    Attack("E4", "make a user namespace", 'call("unshare", 0x10000000)'),
    Attack("E4", "clone into a user namespace",
           'pid = call("clone", 0x10000000 | 17, 0, 0, 0, 0)\nif pid == 0: os._exit(0)'),
    Attack("E4", "clone3", 'pid = call("clone3", struct.pack("8Q", 0, 0, 0, 0, 17, 0, 0, 0), 64)\n'
           "if pid == 0: os._exit(0)", ("ENOSYS",)),
    Attack("E5", "keyctl", 'call("keyctl", 0, -3, 1)'),
    Attack("E5", "add a key", 'call("add_key", b"user", b"x", b"y", 1, -3)'),
    Attack("E5", "join a keyring by its name", 'call("keyctl", 1, b"canary")'),
    Attack("E6", "ptrace a child", """
pid = os.fork()
if pid == 0:
    import time; time.sleep(20); os._exit(0)
try:
    call("ptrace", 16, pid, 0, 0)
finally:
    os.kill(pid, 9)
"""),
    Attack("E6", "have oneself traced", 'call("ptrace", 0, 0, 0, 0)'),
    Attack("E6", "read another process's memory", """
buffer = ctypes.create_string_buffer(8)
local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
call("process_vm_readv", os.getpid(), ctypes.byref(local), 1, ctypes.byref(local), 1, 0)
"""),
    Attack("E6", "write another process's memory", """
buffer = ctypes.create_string_buffer(8)
local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
call("process_vm_writev", os.getpid(), ctypes.byref(local), 1, ctypes.byref(local), 1, 0)
"""),
    Attack("E6", "take a descriptor of another process", """
pid = os.fork()
if pid == 0:
    import time; time.sleep(20); os._exit(0)
try:
    call("pidfd_getfd", os.pidfd_open(pid), 0, 0)
finally:
    os.kill(pid, 9)
"""),
    Attack("E6", "compare kernel objects", 'return call("kcmp", os.getpid(), os.getpid(), 2, 0, 0) == 0'),
    Attack("E6", "advise another process's memory", """
page = ctypes.create_string_buffer(8192)
local = (ctypes.c_void_p * 2)((ctypes.addressof(page) + 4095) & ~4095, 4096)
call("process_madvise", os.pidfd_open(os.getpid()), ctypes.byref(local), 1, 20, 0)
""",
        newer_than=(6, 13),  # before, Linux itself wants a capability, also of oneself
    ),
    Attack("E7", "personality READ_IMPLIES_EXEC", 'call("personality", 0x0400000)'),
    Attack("E7", "personality ADDR_NO_RANDOMIZE", 'call("personality", 0x0040000)'),
    Attack("E7", "dispatch system calls to user space", 'call("prctl", 59, 0, 0, 0, 0)'),
    Attack(F1, "io_uring", 'call("io_uring_setup", 4, ctypes.create_string_buffer(120))', ("ENOSYS",)),
    Attack(F1, "userfaultfd", 'call("userfaultfd", 1)'),
    Attack(F1, "measure with perf events",
           'attr = struct.pack("II", 1, 128) + struct.pack("Q", 1) + bytes(24) + struct.pack("Q", 0x60) + bytes(80)\n'
           'call("perf_event_open", attr, 0, -1, -1, 0)', ("ENOSYS",), bites=("ESCAPED", "refused EACCES")),
    Attack(F1, "load a BPF map", 'call("bpf", 0, struct.pack("IIII", 2, 4, 4, 1) + bytes(56), 72)',
           bites=("ESCAPED",), control=None,
           uncontrolled=LINUX_REFUSES + "kernel.unprivileged_bpf_disabled; the table of all calls has it"),
    Attack(F1, "ask whose pages are in memory", """
import mmap
with open("/usr/bin/env", "rb") as file:
    pages = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
    view = (ctypes.c_char * 1)
    address = ctypes.c_void_p()
    libc.mmap.restype = ctypes.c_void_p
    found = libc.mmap(None, ctypes.c_long(4096), 1, 2, file.fileno(), ctypes.c_long(0))
    call("mincore", ctypes.c_void_p(found), 4096, ctypes.create_string_buffer(8))
"""),
    Attack(F1, "ask what is in the page cache", """
with open("/tmp/mine", "w+b") as file:
    call("cachestat", file.fileno(), struct.pack("QQ", 0, 4096), ctypes.create_string_buffer(40), 0)
""", newer_than=(6, 5)),
    Attack(F1, "memory that nobody else can look at", 'call("memfd_secret", 0)', ("ENOSYS",), newer_than=(6, 5)),
    Attack(F1, "set the policy of memory nodes", 'call("set_mempolicy", 0, 0, 0)'),
    Attack(F1, "move pages between nodes", 'call("move_pages", 0, 0, 0, 0, 0, 0)'),
    Attack(F1, "read segment descriptors", 'call("modify_ldt", 0, ctypes.create_string_buffer(16), 16)'),
    Attack(F1, "get a file's handle", """
handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
call("name_to_handle_at", -100, b"/tmp", handle, ctypes.byref(ctypes.c_int()), 0)
"""),
    Attack(F1, "watch the file system", 'call("fanotify_init", 0x200, 0)'),
    Attack(F1, "openat2, whose mode a filter cannot see",
           'call("openat2", -100, b"/tmp", struct.pack("3Q", 0o200000, 0, 0), 24)', ("ENOSYS",)),
    Attack(F1, "list mounts by namespace",
           'call("listmount", struct.pack("IIQQ", 24, 0, 0xFFFFFFFFFFFFFFFF, 0), ctypes.create_string_buffer(64), 8, 0)',
           ("ENOSYS",), newer_than=(6, 8)),
    Attack(F1, "list security modules",
           'call("lsm_list_modules", ctypes.create_string_buffer(64), ctypes.byref(ctypes.c_uint32(64)), 0)',
           ("ENOSYS",), newer_than=(6, 8)),
    Attack(F1, "change the clock", 'call("clock_settime", 0, 0)', bites=("refused EFAULT", "refused EINVAL")),
    Attack(F1, "load a module", 'call("finit_module", -1, b"", 0)', control=None,
           uncontrolled=LINUX_REFUSES + "the host's capability comes first; the table of all calls has it"),
    Attack(F2, "a system call of the 32-bit table", """
import mmap, signal
code = bytes.fromhex("b814000000cd80c3")  # mov eax, 20 (getpid); int 0x80; ret
page = mmap.mmap(-1, 4096, prot=7)
page.write(code)
function = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
pid = os.fork()
if pid == 0:
    os._exit(0 if function() == os.getpid() else 1)
status = os.waitpid(pid, 0)[1]
if os.WIFSIGNALED(status):
    return "refused " + signal.Signals(os.WTERMSIG(status)).name
return status == 0
""", ("SIGSYS",), bites=("ESCAPED", "refused SIGSEGV")),
    Attack(F4, "splice from a shared file", """
read, write = os.pipe()
fd = os.open("/usr/bin/sh", os.O_RDONLY)
call("splice", fd, ctypes.byref(ctypes.c_longlong(0)), write, None, 16, 0)
"""),
    Attack(F4, "vmsplice of a pipe", """
read, write = os.pipe()
buffer = ctypes.create_string_buffer(16)
call("vmsplice", write, struct.pack("QQ", ctypes.addressof(buffer), 16), 1, 0)
"""),
    Attack(F4, "tee of a pipe", """
(one, other), (third, fourth) = os.pipe(), os.pipe()
os.write(other, b"x")
call("tee", one, fourth, 1, 0)
"""),
    Attack(F4, "an AF_ALG socket", "socket.socket(38, socket.SOCK_SEQPACKET)", ("EAFNOSUPPORT",),
           control=None, uncontrolled=LINUX_REFUSES + "it may not have the family; the next but two tries all"),
    Attack("G6", "take a lease on a file", """
import fcntl
fcntl.fcntl(os.open("/tmp/leased", os.O_CREAT | os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
"""),
    Attack("G6", "be told of what is read in a folder (dnotify)", """
import fcntl
fcntl.fcntl(os.open("/usr/bin", os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_ACCESS)
"""),
    Attack("G8", "an AF_VSOCK socket", "socket.socket(40, socket.SOCK_STREAM)", ("EAFNOSUPPORT",)),
    Attack(F4, "a socket of any other family", """
made = []
for family in set(range(0, 64)) - {0, 1, 2, 10, 16}:
    for kind in range(1, 11):
        try:
            socket.socket(family, kind).close()
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                continue
        made.append((family, kind))
if not made:
    raise OSError(errno.EAFNOSUPPORT, "")
""", ("EAFNOSUPPORT",)),
    Attack(F4, "a netlink socket of any other protocol", """
for protocol in range(1, 32):
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            continue
    return True
raise OSError(errno.EAFNOSUPPORT, "")
""", ("EAFNOSUPPORT",)),
    Attack(F4, "a netfilter socket", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)",
           ("EAFNOSUPPORT",), bites=("ESCAPED", "refused EPROTONOSUPPORT")),
    Attack(F4, "an AF_PACKET socket", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", ("EAFNOSUPPORT",),
           control=PRIVILEGED),
    Attack(F4, "a raw IP socket", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", control=PRIVILEGED),
    Attack(F4, "an MPTCP or SCTP socket", """
for protocol in (262, 132, 136, 1):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol in (262, 132) else socket.SOCK_DGRAM, protocol)
        return True
    except OSError as error:
        if error.errno != errno.EPROTONOSUPPORT:
            return "refused " + errno.errorcode[error.errno]
raise OSError(errno.EPROTONOSUPPORT, "")
""", ("EPROTONOSUPPORT",), bites=("ESCAPED", "refused EACCES")),
    Attack(F4, "an upper layer protocol on TCP (kTLS, ESP)", """
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
    one.setsockopt(6, 31, b"tls")
""", bites=("ESCAPED", "refused ENOENT")),
    Attack(F4, "encapsulation in UDP", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).setsockopt(17, 100, 2)",
           bites=("ESCAPED", "refused ENOPROTOOPT")),
    Attack("C5", "push input to a terminal", """
master, slave = os.openpty()
import fcntl
os.setsid() if os.getsid(0) != os.getpid() else None
fcntl.ioctl(slave, 0x540E, 0)
fcntl.ioctl(slave, 0x5412, b"x")
""", control=PRIVILEGED),
    Attack("C5", "change a terminal's line discipline", """
import fcntl
fcntl.ioctl(os.openpty()[1], 0x5423, struct.pack("i", 0))
"""),
    Attack("H5", "leave a device node by a rename (RENAME_WHITEOUT)", """
open("/tmp/w", "w").close()
call("renameat2", -100, b"/tmp/w", -100, b"/tmp/v", 4)
"""),
    Attack("H4", "set-user-id on a file", 'open("/tmp/s", "w").close(); os.chmod("/tmp/s", 0o4755)'),
    Attack("H4", "set-user-id at creation", 'os.open("/tmp/s2", os.O_CREAT | os.O_WRONLY, 0o4755)'),
    Attack("H4", "set-user-id at creation by creat", 'call("creat", b"/tmp/s3", 0o4755)'),
    Attack("H4", "set-user-id on a file without a name", 'os.open("/tmp", os.O_TMPFILE | os.O_WRONLY, 0o4755)'),
    Attack("H4", "set-user-id by fchmodat2",
           'open("/tmp/s", "w").close(); call("fchmodat2", -100, b"/tmp/s", 0o4755, 0)', newer_than=(6, 6)),
    Attack("H4", "set-group-id by fchmodat", 'open("/tmp/s", "w").close(); call("fchmodat", -100, b"/tmp/s", 0o2755)'),
    Attack("H4", "a set-group-id directory", 'call("mkdir", b"/tmp/d", 0o2755)\nos.chmod("/tmp/d", 0o2755)'),
    Attack("H4", "a set-user-id node", 'call("mknod", b"/tmp/n", 0o104755, 0)'),
)  # fmt: skip
