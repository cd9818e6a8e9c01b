"""Attacks that need a capability in the container's user namespace.

Two defences are in the way: there is no capability, and the filter refuses the call before Linux
asks; of mounts Landlock is a third. The control has none; `alone` are containers with one of them.
"""

from __future__ import annotations

from sandboxruntime.steps import Step
from tests.escape.attacks.canaries import canary_directory
from tests.escape.attacks.model import NO_FILTER, PRIVILEGED, Attack, Control

__all__ = ["ATTACKS"]

FILTER_ALONE = Control(steps=(Step.CAPABILITIES, Step.LANDLOCK), keep_capabilities=True)
BOTH = (NO_FILTER, FILTER_ALONE)
# Of these calls Landlock looks at those that mount by a path, move, unmount or change the root.
LANDLOCK_ALONE = Control(steps=(Step.CAPABILITIES, Step.SECCOMP), keep_capabilities=True)
EACH = (*BOTH, LANDLOCK_ALONE)
NO_CAPABILITY = (NO_FILTER,)  # the filter does not look at these calls
CHROOT_ONLY = """
import os
def pivot_to(root_fd):
    os.fchdir(root_fd)
    os.chroot(".")
    os.chdir("/")
init.pivot_to = pivot_to
"""
SETGROUPS_ALLOWED = """
from sandboxruntime import namespaces
write = namespaces.write_kernel_file
namespaces.write_kernel_file = lambda path, text: None if path.endswith("/setgroups") else write(path, text)
"""
NAMESPACES = {
    "mount": 0x00020000, "cgroup": 0x02000000, "UTS": 0x04000000, "IPC": 0x08000000,
    "PID": 0x20000000, "network": 0x40000000, "time": 0x00000080,
}  # fmt: skip


def attack(section: str, name: str, body: str, *expected: str, **members: object) -> Attack:
    """One that nothing but privilege and filter stop."""
    given: dict[str, object] = {"control": PRIVILEGED, "alone": BOTH, **members}
    return Attack(section, name, body, expected or ("EPERM",), **given)  # type: ignore[arg-type]


ATTACKS = (
    attack("B7", "mount a tmpfs", 'call("mount", b"x", b"/tmp", b"tmpfs", 0, 0)', alone=EACH),
    attack("B7", "mount one directory over another", 'call("mount", b"/etc", b"/tmp", None, 4096, 0)', alone=EACH),
    attack("B7", "move a mount", 'os.mkdir("/tmp/m"); call("mount", b"/dev/shm", b"/tmp/m", None, 8192, 0)', alone=EACH),
    attack("B7", "make a file system", 'call("fsopen", b"tmpfs", 0)'),
    attack("B7", "make an overlay", """
fd = call("fsopen", b"overlay", 0)
call("fsconfig", fd, 0, b"userxattr", 0, 0)
"""),
    attack("B7", "clone the mount of the root", 'call("open_tree", -100, b"/", 1)'),
    attack("B7", "pick the file system of the root", 'call("fspick", -100, b"/tmp", 0)'),
    attack("B7", "change the root", """
os.mkdir("/tmp/r")
call("mount", b"x", b"/tmp/r", b"tmpfs", 0, 0)
os.mkdir("/tmp/r/o")
call("unshare", 0x00020000)
call("pivot_root", b"/tmp/r", b"/tmp/r/o")
""", alone=EACH),
    attack("B7", "chroot", 'os.chroot("/tmp")'),
    attack("B7", "climb out of the root by chroot", """
os.mkdir("/tmp/c")
os.chroot("/tmp/c")
for _ in range(64):
    os.chdir("..")
os.chroot(".")
return os.path.exists(path)
""", control=Control("pivot_root (a mere chroot instead)",
                     PRIVILEGED.steps, True, CHROOT_ONLY),
           alone=(*BOTH, PRIVILEGED), arrange=canary_directory),
    attack("B9", "make /proc/sys writable", 'call("mount", None, b"/proc/sys", None, 32 | 4096 | 2 | 4 | 8, 0)', alone=EACH),
    attack("B9", "clear read-only by mount_setattr",
           'call("mount_setattr", -100, b"/proc/sys", 0, struct.pack("4Q", 0, 1, 0, 0), 32)'),
    attack("B9", "clear nosuid", 'call("mount", None, b"/tmp", None, 32 | 4096, 0)', alone=EACH),
    attack("B3", "unmount a mask", 'call("umount2", b"/proc/keys", 2)', alone=EACH),
    attack("B8", "open a file by its handle", """
handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
call("name_to_handle_at", -100, b"/tmp", handle, ctypes.byref(ctypes.c_int()), 0)
call("open_by_handle_at", os.open("/tmp", os.O_RDONLY), handle, 0)
""", alone=(), control=None, uncontrolled="needs a capability of the host's user namespace"),
    attack("B8", "enter a namespace again", 'call("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0)'),
    attack("D1", "mount the cgroup hierarchy",
           'os.mkdir("/tmp/cg"); call("mount", b"x", b"/tmp/cg", b"cgroup2", 0, 0)', alone=EACH),
    # One that the host has: Linux lets nobody but the host's root make another.
    attack("D1", "mount a hierarchy of cgroup v1", """
found = [line.split(":")[1] for line in open("/proc/self/cgroup")]
name = next((one for one in found if one and "=" not in one), "none,name=canary")
os.mkdir("/tmp/c1")
call("mount", b"x", b"/tmp/c1", b"cgroup", 0, name.encode())
""", alone=EACH),
    *(attack("E4", f"unshare the {name} namespace", f'call("unshare", {flag:#x})')
      for name, flag in NAMESPACES.items()),
    *(attack("E4", f"clone into a {name} namespace",
             f'pid = call("clone", {flag | 17:#x}, 0, 0, 0, 0)\nif pid == 0: os._exit(0)')
      for name, flag in NAMESPACES.items() if name != "time"),
    attack("E1", "hold a capability", """
import re
sets = re.findall(r"Cap(?:Inh|Prm|Eff|Bnd|Amb):\\t(\\w+)", open("/proc/self/status").read())
assert len(sets) == 5
if not any(int(one, 16) for one in sets):
    raise OSError(errno.EPERM, "")
""", alone=NO_CAPABILITY),
    attack("E1", "take a capability", """
header = struct.pack("Ii", 0x20080522, 0)
call("capset", header, struct.pack("6I", 1 << 21, 1 << 21, 0, 0, 0, 0))
""", alone=NO_CAPABILITY),
    attack("E1", "unlock the secure bits", 'call("prctl", 28, 0, 0, 0, 0)', alone=NO_CAPABILITY),
    attack("E2", "setuid to inside root", "os.setresuid(0, 0, 0)", alone=NO_CAPABILITY),
    attack("E2", "setgid to inside root", "os.setresgid(0, 0, 0)", alone=NO_CAPABILITY),
    attack("E2", "give a file away", 'open("/tmp/g", "w").close(); os.chown("/tmp/g", 0, 0)', alone=NO_CAPABILITY),
    attack("E3", "shed a group that excludes", "os.setgroups([])",
           control=Control("setgroups denied", PRIVILEGED.steps, True,
                           SETGROUPS_ALLOWED),
           alone=(PRIVILEGED, Control("setgroups denied", patch=SETGROUPS_ALLOWED))),
    attack("E8", "set the host name", 'socket.sethostname("pwned")'),
    attack("E8", "set the domain name", 'call("setdomainname", b"pwned", 5)'),
    attack("G7", "bring an interface down", """
import fcntl
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 0))
""", alone=NO_CAPABILITY),
    attack("G7", "give an interface an address", """
import fcntl
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(s, 0x8916, struct.pack("16sHH4s8x", b"lo", 2, 0, bytes([127, 1, 2, 3])))
""", alone=NO_CAPABILITY),
    attack("G7", "listen on a privileged port", 'socket.create_server(("127.0.0.1", 80)).close()', "EACCES",
           alone=NO_CAPABILITY),
    attack("B1", "write to the image's programs", 'os.open("/usr/bin/pwned", os.O_CREAT | os.O_WRONLY)', "EACCES",
           alone=NO_CAPABILITY),
    attack("H4", "give a program capabilities", """
open("/home/sandbox/capable", "w").close()
os.setxattr("/home/sandbox/capable", "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
""", alone=NO_CAPABILITY),
    attack("H5", "link a file of the image into the layer", 'os.link("/usr/bin/env", "/home/sandbox/env")',
           "EPERM", "EACCES", "EXDEV", alone=NO_CAPABILITY),
    attack("H5", "exchange a file of the image for one of the layer", """
open("/home/sandbox/x", "w").close()
call("renameat2", -100, b"/home/sandbox/x", -100, b"/usr/bin/env", 2)
""", "EACCES", "EXDEV", alone=NO_CAPABILITY),
    attack("H5", "make a file without a name in the image's folders", 'os.open("/usr/bin", os.O_TMPFILE | os.O_WRONLY)',
           "EACCES", alone=NO_CAPABILITY),
    attack("H7", "truncate a file of the image", 'os.truncate("/usr/bin/env", os.stat("/usr/bin/env").st_size)',
           "EACCES", alone=NO_CAPABILITY),
    attack("H7", "own a file of the image", 'os.chmod("/usr/bin/env", 0o777)', "EPERM", "EACCES", alone=NO_CAPABILITY),
)  # fmt: skip
