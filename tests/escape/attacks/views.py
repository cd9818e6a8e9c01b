"""Attacks on what a sandbox can see and reach: each has a defence of its own, and a canary."""

from __future__ import annotations

from sandboxruntime.steps import Step
from tests.escape.attacks.canaries import (
    abstract_socket,
    canary_directory,
    device,
    loopback_port,
    program_with_capability,
    set_user_id_program,
    shared_memory,
)
from tests.escape.attacks.model import NO_FILTER, Attack, Control

__all__ = ["ATTACKS"]

PLANTED_FD = 77
DUMPABLE = """
be_pid_1 = container.run_init
def run_init(context):
    syscalls.prctl(4, 1)  # PR_SET_DUMPABLE
    be_pid_1(context)
container.run_init = run_init
"""
HOST_NETWORK = """
container.NAMESPACES &= ~syscalls.CloneFlag.NEWNET
init.CREATE_STEPS[init.Step.LOOPBACK] = lambda context: None
"""
HOST_IPC = """
container.NAMESPACES &= ~syscalls.CloneFlag.NEWIPC
from sandboxruntime.mounts import Directory
plan = init.plan_mounts
init.plan_mounts = lambda spec: [  # the host's queues cannot be mounted
    Directory("/dev/mqueue", 0o755, 0) if getattr(o, "fstype", "") == "mqueue" else o
    for o in plan(spec)
]
"""
MOUNT_FLAGS = """
fsmount, attributes = syscalls.fsmount, syscalls.MountAttr.{flag}
syscalls.fsmount = lambda fd, wanted: fsmount(fd, wanted & ~attributes)
"""
KEEP_OPEN = """
import os
def close_fds(context):
    os.dup2(context.log_fd, 1)
    os.dup2(context.log_fd, 2)
init.CREATE_STEPS[init.Step.CLOSE_FDS] = close_fds
"""
HANDED_ON = """
from sandboxruntime import handover
handover._place_fds = lambda sock, fds, output_fds: None
"""
# A directory of the host's, left open before the root is changed.
LEAK = f"""
begin = init.CREATE_STEPS[init.Step.SESSION]
def session(context):
    import os
    begin(context)
    os.dup2(os.open("/", os.O_RDONLY | os.O_DIRECTORY), {PLANTED_FD})
init.CREATE_STEPS[init.Step.SESSION] = session
"""
# A session keyring of the launcher's own, and a key in it.
KEY = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(250, 1, None)
libc.syscall(248, b"user", b"canary", b"x", 1, -3)
"""
SAME_KEYRING = "init.join_keyring = lambda: None\n"
PTYS = "import sandboxruntime.mounts; sandboxruntime.mounts.PTYS_MAX = 256\n"
PID_1 = Control("pid 1 is not dumpable", patch=DUMPABLE)
NETWORK = Control("the network namespace", patch=HOST_NETWORK)
NETWORK_AND_SCOPE = Control("the network namespace", steps=(Step.LANDLOCK,), patch=HOST_NETWORK)


def looks_at_pid_1(what: str, body: str) -> Attack:
    return Attack("A4", f"look at pid 1's {what}", body, ("EACCES", "EPERM"), control=PID_1)


NODEV = Control("nodev", patch=MOUNT_FLAGS.format(flag="NODEV"))
NOSUID = Control("nosuid", patch=MOUNT_FLAGS.format(flag="NOSUID"))
NO_NEW_PRIVS = Control(steps=(Step.NO_NEW_PRIVS, Step.SECCOMP, Step.LANDLOCK))
SET_USER_ID = Control("nosuid", (*NO_NEW_PRIVS.steps, Step.CAPABILITIES),
                      patch=NOSUID.patch)  # fmt: skip
# As the set-user-id bit, but for what an exec takes from the bounding set.
BOUNDING = Control(
    "the bounding set",
    (Step.CAPABILITIES,),
    patch="""
from sandboxruntime import capabilities
capabilities.drop_bounding = lambda: None
""",
)
FILE_CAPABILITY = Control("nosuid, the bounding set", SET_USER_ID.steps,
                          patch=NOSUID.patch + BOUNDING.patch)  # fmt: skip
OPEN_NODE = 'os.open("/home/sandbox/node", os.O_RDONLY | os.O_NONBLOCK)'

# Descriptors: a file of one's own with what shall be in the image's, and that one, to read.
WRITE_BY = """
import fcntl
with open("/home/sandbox/mine", "w") as file:
    file.write("new")
mine, theirs = os.open("/home/sandbox/mine", os.O_RDONLY), os.open("/usr/bin/env", os.O_RDONLY)
{act}
"""
DEDUPLICATE = """
given = struct.pack("QQHHI", 0, 3, 1, 0, 0) + struct.pack("qQQiI", theirs, 0, 0, 0, 0)
answer = struct.unpack("qQQiI", fcntl.ioctl(mine, 0xC0189436, given)[24:])[3]
if answer != 0:
    raise OSError(-answer if answer < 0 else errno.EINVAL, "")
"""
ATTACKS = (
    looks_at_pid_1("program", 'os.readlink("/proc/1/exe")'),
    looks_at_pid_1("memory", 'os.open("/proc/1/mem", os.O_RDONLY)'),
    looks_at_pid_1("environment", 'os.open("/proc/1/environ", os.O_RDONLY)'),
    looks_at_pid_1("root", 'os.listdir("/proc/1/root/")'),
    looks_at_pid_1("working directory", 'os.listdir("/proc/1/cwd/")'),
    looks_at_pid_1("descriptors", 'os.listdir("/proc/1/fd")'),
    looks_at_pid_1("memory map", 'os.open("/proc/1/maps", os.O_RDONLY)'),
    Attack("A1", "write to the interpreter", 'os.open("/proc/self/exe", os.O_WRONLY)',
           ("EACCES", "ETXTBSY", "EROFS"), control=None,
           uncontrolled="tests/integration/test_bundles.py has it, on a copy of Python"),
    Attack("A3", "use a descriptor of the launcher's", f"""
os.stat(path.lstrip("/"), dir_fd={PLANTED_FD})
""", ("EBADF",), control=Control("descriptors closed, and again at the hand-over", patch=KEEP_OPEN + HANDED_ON),
           alone=(Control("descriptors closed", patch=KEEP_OPEN),
                  Control("descriptors closed at the hand-over", patch=HANDED_ON)), plant=LEAK, arrange=canary_directory),
    Attack("A2", "work outside of the root", """
if os.getcwd().startswith("/") and os.path.samestat(os.stat("/"), os.stat("/..")):
    raise OSError(errno.ENOENT, "")
""", ("ENOENT",), control=None, uncontrolled="runs in every sandbox: a working directory outside is no path"),
    Attack("B7", "find a file of the host's", "os.stat(path)", ("ENOENT",),
           control=None, uncontrolled="the host's root is no layer: nothing can be left out", arrange=canary_directory),
    Attack("A1", "run as a program that is not the image's", """
if os.path.samestat(os.stat("/proc/self/exe"), os.stat(os.path.realpath(sys.executable))):
    raise OSError(errno.ENOENT, "")
""", ("ENOENT",), control=None, uncontrolled="what is executed is found below the root: there is no other program"),
    Attack("B8", "climb by the links of /proc", """
climb = "/.." * 40
for way in ("self/root", "self/cwd", "thread-self/root", "1/root", "1/cwd"):
    if os.path.exists("/proc/" + way + climb + path):
        return True
raise OSError(errno.ENOENT, "")
""", ("ENOENT",), control=None, uncontrolled="the same", arrange=canary_directory),
    Attack("E2", "write another map of ids", """
os.write(os.open("/proc/self/uid_map", os.O_WRONLY), b"0 0 4294967295")
""", control=None, uncontrolled="Linux takes a map once, and it is written before anything runs inside"),
    Attack("C4", "make a device node", "os.mknod('/tmp/made', 0o020666, os.makedev(1, 3))", ("EPERM", "EACCES"),
           control=None, uncontrolled="needs a capability of the host's user namespace"),
    Attack("C1", "read the host's interrupts", 'return open("/proc/interrupts", "rb").read(1) != b"" or "refused nothing"',
           ("nothing",), control=Control("the masks", spec=(("masked_paths", ()),))),
    Attack("C1", "list System V objects by /proc", 'return bool(os.listdir("/proc/sysvipc"))', ("nothing",),
           control=Control("the masks", spec=(("masked_paths", ()),))),
    Attack("C2", "open a trigger of Linux", 'os.open("/proc/sysrq-trigger", os.O_WRONLY)', ("EROFS", "EACCES", "ENOENT"), control=None,
           uncontrolled="belongs to the host's root: a control would need it, and could reboot the machine"),
    Attack("C2", "open the pattern of core files", 'os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)',
           ("EROFS", "EACCES"), control=None, uncontrolled="the same"),
    Attack("C2", "have Linux watch the host's memory for one (a PSI trigger)", """
os.write(os.open("/proc/pressure/memory", os.O_RDWR), b"some 1000000 2000000 ")
""", ("EROFS", "ENOENT"), control=Control("the read-only paths", spec=(("read_only_paths", ()),)),
           newer_than=(6, 5)),  # before, Linux itself wants a capability of the host's
    Attack("C4", "open a device node of the layer", OPEN_NODE, ("EACCES",), control=NODEV,
           arrange=device(1, 3), needs_layer=True),
    Attack("C5", "take more terminals than there should be", """
held = []
while len(held) < 128:
    held.append(os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY))
""", ("ENOSPC",), control=Control("the bound of terminals", patch=PTYS)),
    Attack("D2", "see its place in the cgroup tree", """
if all(line.rstrip().endswith(":/") for line in open("/proc/self/cgroup")):
    raise OSError(errno.ENOENT, "")
""", ("ENOENT",), control=Control(steps=(Step.CGROUP_NAMESPACE,))),
    Attack("D2", "find a cgroup file", """
found = [line.split()[4] for line in open("/proc/self/mountinfo") if " - cgroup" in line]
if not found:
    raise OSError(errno.ENOENT, "")
""", ("ENOENT",), control=None, uncontrolled="no cgroup file system is mounted; mounting one is D1"),
    Attack("E1", "gain an id by a set-user-id program", """
import subprocess
if subprocess.run(["/home/sandbox/id", "-u"], capture_output=True, text=True).stdout.strip() != "0":
    raise OSError(errno.EPERM, "")
""", control=SET_USER_ID, alone=(NOSUID, NO_NEW_PRIVS), arrange=set_user_id_program, needs_layer=True),
    Attack("E1", "gain a capability by a program's file capabilities", """
import subprocess
done = subprocess.run(["/home/sandbox/cat", "/proc/self/status"], capture_output=True, text=True)
if "CapPrm:\t0000000000002000" not in done.stdout:
    raise OSError(errno.EPERM, "")
""", control=FILE_CAPABILITY, alone=(NOSUID, NO_NEW_PRIVS, BOUNDING),
           arrange=program_with_capability, needs_layer=True),
    Attack("E5", "find a key of the launcher's", 'call("keyctl", 10, -3, b"user", b"canary", 0)',
           control=Control("the session keyring", NO_FILTER.steps, patch=SAME_KEYRING),
           alone=(Control("the session keyring", patch=SAME_KEYRING), NO_FILTER), plant=KEY),
    Attack("G1", "connect to an abstract socket of the host's", "socket.socket(socket.AF_UNIX).connect(name)",
           ("ECONNREFUSED", "EPERM"), control=NETWORK_AND_SCOPE, alone=(), arrange=abstract_socket),
    Attack("G1", "connect to an abstract socket of the host's from its network",
           "socket.socket(socket.AF_UNIX).connect(name)", ("EPERM",),
           control=Control(steps=(Step.LANDLOCK,)), plant=HOST_NETWORK, arrange=abstract_socket,
           newer_than=(6, 12)),
    Attack("G7", "connect to a port of the host's loopback", 'socket.create_connection(("127.0.0.1", port))',
           ("ECONNREFUSED",), control=NETWORK, arrange=loopback_port),
    Attack("G5", "open System V shared memory of the host's", 'call("shmget", key, 0, 0)', ("ENOENT",),
           control=Control("the IPC namespace", patch=HOST_IPC), arrange=shared_memory),
    Attack("H3", "mark a file for the overlay", """
open("/home/sandbox/marked", "w").close()
os.setxattr("/home/sandbox/marked", "trusted.overlay.redirect", b"/etc")
""", control=None, uncontrolled="needs a capability of the host's user namespace"),
    *(Attack("H5", f"write to a file of the image by {name}", WRITE_BY.format(act=act), refusals, control=None,
             uncontrolled="who may write to the file needs none of these; that is the next section's")
      for name, act, refusals in (
          ("copy_file_range", "os.copy_file_range(mine, theirs, 3)", ("EBADF",)),
          ("FICLONE", "fcntl.ioctl(theirs, 0x40049409, mine)", ("EBADF", "EOPNOTSUPP", "EXDEV")),
          ("FIDEDUPERANGE", DEDUPLICATE, ("EPERM", "EOPNOTSUPP", "EXDEV", "EINVAL")))),
    Attack("H7", "make a file of the image immutable", """
import fcntl
fcntl.ioctl(os.open("/usr/bin/env", os.O_RDONLY), 0x40086602, struct.pack("l", 0x10))
""", ("EPERM", "EACCES", "EROFS", "ENOTTY"), control=None, uncontrolled="needs a capability of the host's user namespace"),
)  # fmt: skip
