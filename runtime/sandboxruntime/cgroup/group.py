"""One cgroup in every hierarchy of the host. Effects."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections.abc import Callable, Mapping

from sandboxruntime import syscalls
from sandboxruntime.cgroup import devices, lifecycle, v1, v2
from sandboxruntime.cgroup.files import apply_writes, open_file, read_text, write_text
from sandboxruntime.cgroup.layout import Layout, check_path
from sandboxruntime.cgroup.limits import Check, Limits, Usage
from sandboxruntime.cgroup.plan import plan_devices, plan_parent_writes, plan_writes
from sandboxruntime.cgroup.readback import limits_in_force
from sandboxruntime.errors import HostError, StateError

__all__ = ["Cgroup", "create_parent"]

_DEADLINE_S = 10.0
_Reader = Callable[[str, str], str]
_EVENT_BYTES = 8  # an eventfd is read as one 64-bit counter


class Cgroup:
    """A cgroup of the same path in every hierarchy that the sandbox uses.

    Holds no descriptor but those behind oom_notify_fd(). Not thread-safe.
    """

    def __init__(self, layout: Layout, path: str) -> None:
        """Name a cgroup without touching the host; use create() or attach()."""
        self.layout = layout
        self.path = check_path(path)
        self._directories = {key: f"{point}/{path}" for key, point in layout.hierarchies().items()}
        self._oom_files: dict[int, int] = {}  # epoll descriptor -> memory.events descriptor

    @classmethod
    def create(
        cls,
        layout: Layout,
        path: str,
        limits: Limits,
        *,
        kill_as_unit: bool = True,
        guard_devices: bool = False,
    ) -> Cgroup:
        """Make the cgroup, write every limit and read it back.

        `kill_as_unit`: where Linux itself can (v2), out of memory ends all of it, not one process.
        `guard_devices`: where v2 has the device allow-list, too; v1 always has it.
        Parents are made as needed. Nothing is left behind on failure. Raises HostError if a
        limit cannot be enforced here, StateError if the cgroup exists already (it could hold
        another sandbox's processes).
        """
        group = cls(layout, path)
        parent_writes = plan_parent_writes(layout, limits)
        writes = plan_writes(
            layout, limits, swap_exists=_swap_exists(), kill_as_unit=kill_as_unit
        ) + plan_devices(layout)
        made: list[str] = []
        try:
            lifecycle.make_parents(layout, path, parent_writes, made)
            lifecycle.make_leaf(group._directories, path, made)
            apply_writes(layout, path, writes)
            if guard_devices:
                group.guard_devices()
        except BaseException as exc:
            lifecycle.undo(made, exc)
            raise
        return group

    @classmethod
    def attach(cls, layout: Layout, path: str) -> Cgroup:
        """Return the existing cgroup; StateError if any hierarchy lacks it."""
        group = cls(layout, path)
        for directory in group._directories.values():
            if not os.path.isdir(directory):
                raise StateError(f"no cgroup {directory}", container_id=path, status="missing")
        return group

    @property
    def directories(self) -> Mapping[str, str]:
        """Directory in each hierarchy, by the key used in /proc/PID/cgroup ("" for v2)."""
        return self._directories

    def entry_fds(self) -> list[int]:
        """Open the v1 files into which a single-threaded child writes b"0" to enter by itself.

        Write-only, close-on-exec; the caller owns them. The kernel checks the opener's
        credentials, so the child needs none of its own (Linux 5.16). Into v2 the child is
        cloned: see directory_fd().
        """
        fds: list[int] = []
        try:
            for key, directory in self._directories.items():
                if key:
                    # `tasks` moves a task without the lock that cgroup.procs takes: 0.02 ms.
                    fds.append(open_file(f"{directory}/tasks", os.O_WRONLY))
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def directory_fd(self) -> int:
        """Open the v2 directory for clone3(CLONE_INTO_CGROUP); -1 where there is no v2.

        A write to v2's cgroup.procs waits for an RCU grace period, 10 ms and more; a clone
        into the cgroup does not. It is a detached mount of that directory alone: whoever is
        given the descriptor cannot walk up from it. The caller owns it.
        """
        directory = self._directories.get("")
        if directory is None:
            return -1
        flags = syscalls.OpenTreeFlag.CLONE | syscalls.OpenTreeFlag.CLOEXEC
        return syscalls.open_tree(syscalls.AT_FDCWD, directory, flags)

    def admit(self, gid: int, origin: str) -> None:
        """Let processes of a group that are in the cgroup `origin` clone children into this one.

        For v2, clone3(2) asks for the right to write cgroup.procs here and in the common
        ancestor. No container can reach either file: cgroup file systems are not mounted there.
        """
        if "" not in self._directories:
            return
        ancestor = os.path.commonpath([self.path, origin])
        for path in (self.path, ancestor):
            file = f"{self.layout.directory('', path)}/cgroup.procs"
            if os.stat(file).st_gid != gid:
                os.chown(file, -1, gid)
                os.chmod(file, 0o664)

    def enter(self, pid: int) -> None:
        """Move the whole process `pid` in. Raises OSError (ESRCH if it has ended)."""
        for directory in self._directories.values():
            write_text(f"{directory}/cgroup.procs", str(pid))

    def membership(self) -> dict[str, str]:
        """Return what /proc/PID/cgroup must show: controller list ("" for v2) -> path."""
        return {key: f"/{self.path}" for key in self._directories}

    def check_membership(self, proc_cgroup_text: str) -> list[str]:
        """Compare the text of /proc/PID/cgroup; return one message per mismatch."""
        found: dict[frozenset[str], str] = {}
        for line in filter(None, proc_cgroup_text.split("\n")):
            _number, controllers, path = line.split(":", 2)
            found[frozenset(controllers.split(","))] = path
        problems = []
        for key, path in self.membership().items():
            got = found.get(frozenset(key.split(",")))
            if got != path:
                problems.append(f"cgroup {key or 'v2'}: expected {path}, found {got}")
        return problems

    def update(self, limits: Limits) -> None:
        """Replace the limits in force; what `limits` leaves out becomes uncapped.

        Raises HostError if the processes use more memory than the new limit and cannot give it
        up (v1: EBUSY), rather than killing them.
        """
        _update(self.layout, self.path, limits, self._read, kill_as_unit=True)

    @property
    def device_list(self) -> str:
        """Where the device allow-list is: "v1", "bpf" (v2), or "" where this host has none."""
        if "devices" in self.layout.v1:
            return "v1"
        return "bpf" if self.layout.v2 is not None and devices.is_supported() else ""

    def guard_devices(self) -> None:
        """Put the device allow-list in force unless it is. Raises HostError."""
        if not self.check_devices():
            return
        if self.device_list == "v1":
            apply_writes(self.layout, self.path, plan_devices(self.layout))
            return
        try:
            devices.attach(self._directories[""])
        except OSError as exc:
            raise HostError(
                f"cannot attach the device allow-list to cgroup {self.path}: {exc.strerror}",
                feature="cgroup:devices",
                hint="a device program above it allows no other: look at `bpftool cgroup tree`",
            ) from exc

    def check_devices(self) -> list[str]:
        """One message where the device allow-list should be in force, and is not."""
        if self.device_list == "v1":
            found = {line for line in self._read("devices", "devices.list").split("\n") if line}
            allowed = {w.value for w in plan_devices(self.layout) if w.check is Check.LINE}
            return [] if found == allowed else [f"cgroup devices: {sorted(found)}"]
        if self.device_list != "bpf" or devices.PROGRAM_NAME in devices.attached(
            self._directories[""]
        ):
            return []
        return [f"cgroup v2: no device allow-list is attached to {self.path}"]

    def freeze(self, timeout_s: float = _DEADLINE_S) -> None:
        """Stop every process; thaws and raises HostError if that takes too long."""
        lifecycle.freeze(self._directories, timeout_s)

    def thaw(self) -> None:
        """Let every process run. Idempotent."""
        lifecycle.thaw(self._directories)

    def is_frozen(self) -> bool:
        """Whether every process is stopped."""
        return lifecycle.is_frozen(self._directories)

    def kill(self, timeout_s: float = _DEADLINE_S) -> None:
        """SIGKILL everything inside until nothing is left.

        Frozen processes are thawed, or they could not die. Raises StateError after `timeout_s`
        (a process is stuck in the kernel). No error if the cgroup is gone.
        """
        lifecycle.kill(self._directories, self.path, timeout_s)

    def pids(self) -> list[int]:
        """Return the processes in any hierarchy, sub-cgroups included, in numeric order."""
        return lifecycle.pids(self._directories.values())

    def members(self) -> list[int]:
        """The processes in one hierarchy, v2 where there is one: pids() of what is whole."""
        directories = self._directories
        return lifecycle.pids([directories.get("") or next(iter(directories.values()))])

    def usage(self) -> Usage:
        """Read the counters. Raises OSError, ENOENT or ENODEV, if the cgroup is gone or going."""
        os.stat(next(iter(self._directories.values())))
        first, second = v1.usage(self._read), v2.usage(self._read)
        own = {name: getattr(first, name) or getattr(second, name) for name in Usage.__slots__}
        return Usage(**own)

    def limits_in_force(self) -> Limits:
        """Read back every limit. Raises as usage() does."""
        os.stat(next(iter(self._directories.values())))
        return limits_in_force(self.layout, self._read)

    def oom_notify_fd(self) -> int:
        """Return a descriptor that becomes readable when the cgroup runs out of memory.

        Pass it to acknowledge_oom() after each event, then compare usage().oom_kills: v1 also
        fires when the cgroup is removed, and before the victim is dead. It stays valid until
        close_oom_fd() or remove(). Raises HostError without a memory controller.
        """
        if "memory" in self.layout.v1:
            return self._oom_eventfd(self.layout.directory("memory", self.path))
        if "memory" not in self.layout.v2_controllers:
            raise HostError("no memory cgroup controller", feature="cgroup:memory")
        events_path = f"{self.layout.directory('', self.path)}/memory.events"
        events_fd = open_file(events_path, os.O_RDONLY)
        # A control file polls as always readable and signals a change as POLLPRI, which an
        # event loop cannot ask for: epoll turns that into plain readability.
        epoll = select.epoll()
        try:
            os.pread(events_fd, 4096, 0)  # the kernel compares with the last reading
            epoll.register(events_fd, select.EPOLLPRI)
            fd = os.dup(epoll.fileno())
            os.set_inheritable(fd, False)
        except OSError:
            os.close(events_fd)
            raise
        finally:
            epoll.close()
        self._oom_files[fd] = events_fd
        return fd

    def _oom_eventfd(self, directory: str) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control_fd = open_file(f"{directory}/memory.oom_control", os.O_RDONLY)
            try:
                write_text(f"{directory}/cgroup.event_control", f"{fd} {control_fd}")
            finally:
                os.close(control_fd)
        except OSError:
            os.close(fd)
            raise
        self._oom_files[fd] = -1
        return fd

    def acknowledge_oom(self, fd: int) -> None:
        """Make `fd` of oom_notify_fd() unreadable until the next event."""
        events_fd = self._oom_files[fd]
        if events_fd >= 0:
            os.pread(events_fd, 4096, 0)
            return
        with contextlib.suppress(BlockingIOError):  # nothing happened since the last call
            os.read(fd, _EVENT_BYTES)

    def close_oom_fd(self, fd: int) -> None:
        """Close a descriptor of oom_notify_fd(). Idempotent."""
        events_fd = self._oom_files.pop(fd, None)
        if events_fd is None:
            return
        os.close(fd)
        if events_fd >= 0:
            os.close(events_fd)

    def remove(self, timeout_s: float = _DEADLINE_S) -> None:
        """Remove the cgroup from every hierarchy. Idempotent; kills nothing.

        Waits for processes that are on their way out; StateError after `timeout_s`.
        """
        for fd in list(self._oom_files):
            self.close_oom_fd(fd)
        lifecycle.remove(self._directories, self.path, timeout_s)

    def _read(self, controller: str, file: str) -> str:
        if controller not in self.layout.v1 and (controller or self.layout.v2 is None):
            return ""
        try:
            return read_text(f"{self.layout.directory(controller, self.path)}/{file}")
        except FileNotFoundError:
            return ""  # this kernel has no such counter; usage() has told a missing cgroup apart
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP:
                return ""  # the controller is there but counts nothing (blkio without a policy)
            raise


def create_parent(layout: Layout, path: str, limits: Limits) -> Cgroup:
    """Make or update the cgroup above several sandboxes: one user's ceiling.

    Idempotent. Nothing may enter it: on v2 a cgroup with children holds no processes. Its
    children still need create(). Raises HostError if a limit cannot be enforced here.
    """
    group = Cgroup(layout, path)
    parent_writes = plan_parent_writes(layout, limits)
    made: list[str] = []
    try:
        # The placeholder leaf makes `path` itself a parent, which gets the parent's writes.
        lifecycle.make_parents(layout, f"{path}/leaf", parent_writes, made)
        _update(layout, path, limits, group._read, kill_as_unit=False)
    except BaseException as exc:
        lifecycle.undo(made, exc)
        raise
    return group


def _update(
    layout: Layout, path: str, limits: Limits, read: _Reader, *, kill_as_unit: bool
) -> None:
    current = read("memory", "memory.limit_in_bytes").strip()
    writes = plan_writes(
        layout,
        limits,
        reset=True,
        memory_limit_bytes=int(current) if current else v1.UNLIMITED_BYTES,
        swap_exists=_swap_exists(),
        kill_as_unit=kill_as_unit,
    )
    if "blkio" in layout.v1:
        writes += v1.io_resets(read, limits.io)
    elif "io" in layout.v2_controllers:
        writes += v2.io_resets(read, limits.io)
    if limits.memory_bytes is not None and "memory" in layout.v2_controllers:
        _make_room(layout.directory("", path), limits.memory_bytes, read)
    apply_writes(layout, path, writes)


def _make_room(directory: str, memory_bytes: int, read: _Reader) -> None:
    """Reclaim before lowering: writing a memory.max below the usage would kill processes."""
    excess = v2.usage(read).memory_bytes - memory_bytes
    if excess <= 0:
        return
    try:
        write_text(f"{directory}/memory.reclaim", str(excess))
    except OSError as exc:
        # ENOENT: before Linux 5.19. EAGAIN: less than asked was reclaimed. The usage decides.
        if exc.errno not in (errno.ENOENT, errno.EAGAIN):
            raise
    if v2.usage(read).memory_bytes > memory_bytes:
        raise HostError(
            f"cannot lower the memory limit to {memory_bytes} bytes: more is in use",
            feature="cgroup:memory.max",
            hint="restart the kernel, or free memory in it first",
        )


def _swap_exists() -> bool:
    return os.path.exists("/proc/swaps")  # absent without CONFIG_SWAP
