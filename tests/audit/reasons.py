"""Why ours is looser than another sandbox on some rows. Data: a row, or a pattern of rows."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["BESIDE_GVISOR", "EXPLAINED"]

# Whoever is stricter: why a notebook needs it.
EXPLAINED: Mapping[str, str] = {
    "syscall: landlock_*": "a program may confine itself further; rules only ever take away",
    "mount: a device or mask *": "runc's containers alone: OCI has no word for the flags of these",
    "syscall: mseal": "it only takes rights away; newer libc seal what they have loaded",
    "syscall: fchmodat2": "fchmodat with its flags, which libc calls first; set-user-id is refused",
    "syscall: pkey_*": "node keeps its compiled code so; a key only takes rights away from a page",
}

SHARED = "Linux is shared, and says this to every process of docker's and bubblewrap's, too"
DRIVERS = "which drivers and file systems Linux has: no state, and nothing of anybody's"
COUNTS = "counts and sizes of the machine as a whole: its load is not hidden (not promised)"
OWN_SCHEDULING = "of own processes; real time wants a privilege that nobody inside can have"
MESSAGES = "POSIX message queues of the sandbox's own IPC namespace, of its own users"
# Where gVisor alone is stricter. It is another kernel: its /proc has 71 files that open, its own
# version, clock and processors, and it lacks calls. Files were read inside for what they say.
BESIDE_GVISOR: Mapping[str, str] = {
    "proc: read /proc/sys/net/*": "settings of its own network namespace; keys and secrets of "
    "addresses (tcp_fastopen_key, stable_secret) open to root alone",
    "proc: read /proc/sys/user/*": "bounds of its own user namespace",
    "proc: read /proc/sys/*": "settings, none of them writable, and counts of open files and inodes "
    "of the machine as a whole; what would help an exploit (mmap_rnd_bits) opens to root alone",
    "proc: read /proc/kallsyms": "names of Linux's functions; every address is 0 without CAP_SYSLOG",
    "proc: read /proc/iom*": "names of the hardware's ranges; every address is 0 without CAP_SYS_ADMIN",
    "proc: read /proc/iop*": "names of the hardware's ranges; every address is 0 without CAP_SYS_ADMIN",
    "proc: read /proc/config.gz": "how Linux was built, which follows from its version",
    "proc: read /proc/key-users": "counts of keys of its own user namespace's ids; keys are refused",
    "proc: read /proc/pressure/*": COUNTS,
    **dict.fromkeys((f"proc: read /proc/{name}" for name in (
        "buddyinfo", "diskstats", "partitions", "softirqs", "swaps", "vmstat", "zoneinfo")), COUNTS),
    **dict.fromkeys((f"proc: read /proc/{name}" for name in (
        "consoles", "crypto", "devices", "dma", "execdomains", "misc", "tty/*")), DRIVERS),
    "fact: diskstats": COUNTS,
    "fact: the host's *": SHARED,
    "namespace: time": "no offset of clocks is set; of its own, it would hide nothing but the uptime",
    "device: /dev/tty": "the process's own terminal and no other: getpass and pagers open it",
    "syscall: 335": "uretprobe: Linux shows it to no filter; it ends every caller but its own probes",
    "syscall: 336": "uprobe: Linux shows it to no filter; it refuses every caller but its own probes",
    "syscall: copy_file_range": "cp and os.copy_file_range; between files that are open already",
    "syscall: futex_waitv": "futex on several words of the caller's own memory",
    "syscall: io_*": "asynchronous reads and writes of open files (libaio), as databases use them",
    "syscall: ioprio_*": OWN_SCHEDULING,
    "syscall: sched_*": OWN_SCHEDULING,
    "syscall: mq_*": MESSAGES,
    "syscall: pidfd_*": "asyncio and subprocess wait for children by them; own PID namespace alone",
    "syscall: rseq": "libc registers it for each thread; it concerns the caller's own memory",
    "syscall: setfs?id": "without a capability they take ids that the process has already",
}  # fmt: skip
