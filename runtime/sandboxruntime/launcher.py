"""The launcher: one thread, root, standard library. Serves one daemon over a socket.

Requests are JSON objects with `op`, `serial` and descriptors (channel.py); every request gets
one reply with its serial; exits are reported as events. When the daemon's socket closes, the
launcher ends and leaves its containers alone: the next daemon's launcher adopts them.

op       members                  descriptors              reply
create   spec, zygote, spare      hand-over socket, log    pid, timings, path, root; pidfd of pid 1
adopt    spec, pid                                         log
exec     container_id             hand-over socket, log    exec_id
delete   container_id, cgroups_path                        (nothing)
forget   upper                                             released: bool
adopt_zygote   container_id       its control socket       (nothing)
retire_zygote  container_id                                (nothing)
park     zygote, spare, cgroups_path, limits               (nothing)
unpark   spare                                             (nothing)

Nobody waits for what another one's request waits for: the processes of a create or an exec run in
a cgroup, which may be throttled or frozen. Other operations take as long as Linux does.

A create that names a spare or a zygote which is gone takes the next best; `path` in the reply
tells: spare, warm or cold. Events are exit, exec_exit, spare_exit and zygote_exit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from sandboxruntime import container as containers
from sandboxruntime import oci, syscalls
from sandboxruntime.cgroup import Cgroup, Limits, read_layout
from sandboxruntime.channel import DescriptorsLost, close_fds, recv_message, send_message
from sandboxruntime.container import Container, Host, Joined
from sandboxruntime.errors import ContainerError, ContainerNotFound, StateError
from sandboxruntime.readopt import adopt
from sandboxruntime.request import Message, Request
from sandboxruntime.rootfs import MountFactory
from sandboxruntime.spec import Spec, from_json
from sandboxruntime.status import Waiting
from sandboxruntime.steps import Step
from sandboxruntime.syscalls import CloneFlag, MountFlag
from sandboxruntime.zygote import Spare, Zygote

__all__ = ["Launcher", "main"]

# What members or descriptors that are missing, or are something else, raise.
_MISTAKES = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
FAULT_VARIABLE = "SANDBOXRUNTIME_FAIL_AT"  # a Step: the fault-injection tests set it


def _survive(callback: Callable[[], None]) -> None:
    """One container's trouble must not end all others: it goes to the daemon's log."""
    try:
        callback()
    except (ContainerError, OSError):
        sys.stderr.write(traceback.format_exc())


class Launcher:
    """The event loop: the socket to the daemon; per container, exit pipe and OOM descriptor."""

    def __init__(self, sock: socket.socket, host: Host) -> None:
        self._sock = sock
        self._host = host
        self._containers: dict[str, Container] = {}
        self._joined: dict[int, Joined] = {}
        self._zygotes: dict[str, Zygote] = {}
        self._spares: dict[str, Spare] = {}
        self._unfinished: list[Request] = []
        self._serial = 0
        self._running = True
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ, self._serve)

    def run(self) -> None:
        """Serve until the daemon's socket closes. Its mounts end with this process."""
        while self._running:
            for key, _ in self._selector.select(self._until_next_deadline()):
                # An earlier callback of this round may have deleted what this one is for.
                if self._selector.get_map().get(key.fd) is key:
                    callback: Callable[[], None] = key.data
                    callback()
            now = time.monotonic()
            for request in list(self._unfinished):
                if request.wait is not None and request.wait.deadline <= now:
                    self._go_on(request, False)
        for request in list(self._unfinished):
            _survive(partial(self._abandon, request))

    def _until_next_deadline(self) -> float | None:
        deadlines = [r.wait.deadline for r in self._unfinished if r.wait is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _serve(self) -> None:
        try:
            message, fds = recv_message(self._sock)
        except DescriptorsLost as exc:
            request = Request(exc.message)
            self._answer(request, {"error": request.refusal(OSError(errno.EMFILE, str(exc)))})
            return
        except ValueError as exc:  # nobody can be answered: it has no serial
            sys.stderr.write(f"the launcher was sent {exc}\n")
            return
        if message is None:
            self._running = False
            return
        request = Request(message)
        request.work = self._dispatch(message, fds, request.reply_fds)
        self._unfinished.append(request)
        self._go_on(request, None, fds)

    def _go_on(
        self, request: Request, heard: bool | None, borrowed: list[int] | None = None
    ) -> None:
        """Do the next part of a request's work, and answer it at the end.

        Closes `borrowed`, which no later part needs, before anybody is answered.
        """
        assert request.work is not None
        self._wait_no_more(request)
        reply, wait = {}, None
        try:
            wait = request.work.send(heard)
        except StopIteration as done:
            reply = done.value
        except (ContainerError, OSError, *_MISTAKES) as exc:
            reply = {"error": request.refusal(exc)}  # not `exc`: nothing collects its cycles
        finally:
            close_fds(borrowed or [])
        if wait is not None:
            request.wait = wait
            self._selector.register(
                wait.fd, selectors.EVENT_READ, partial(self._go_on, request, True)
            )
            return
        self._unfinished.remove(request)
        self._answer(request, reply)

    def _answer(self, request: Request, reply: Message) -> None:
        self._send({"serial": request.message.get("serial"), **reply}, request.reply_fds)

    def _wait_no_more(self, request: Request) -> None:
        if request.wait is not None:
            self._selector.unregister(request.wait.fd)
            request.wait = None

    def _abandon(self, request: Request) -> None:
        """Undo what a request has done so far, and answer that."""
        assert request.work is not None
        self._wait_no_more(request)
        self._unfinished.remove(request)
        gone = StateError("given up", container_id=str(request.creates), status="creating")
        self._answer(request, {"error": request.refusal(gone)})
        request.work.close()

    def _dispatch(self, message: Message, fds: list[int], reply_fds: list[int]) -> Waiting[Message]:
        operation = _OPERATIONS.get(str(message.get("op")))
        if operation is None:
            raise ContainerError(f"unknown operation {message.get('op')!r}"[:200])
        outcome = operation(self, message, fds, reply_fds)
        if isinstance(outcome, Generator):
            outcome = yield from outcome
        return outcome or {}

    def _create(self, message: Message, fds: list[int], reply_fds: list[int]) -> Waiting[Message]:
        spec = from_json(Spec, message["spec"])
        path, source = self._source(message) if spec.executor is None else ("cold", None)
        created = yield from containers.create(
            self._host, spec, handover_fd=fds[0], log_fd=fds[1], source=source
        )
        self._watch(created)
        reply_fds.append(created.pidfd)
        return {
            "pid": created.pid, "timings": created.timings, "path": path, "root": created.root,
        }  # fmt: skip

    def _adopt(self, message: Message, _fds: list[int], reply_fds: list[int]) -> None:
        spec = from_json(Spec, message["spec"])
        if spec.container_id in self._containers:
            raise StateError(
                f"container {spec.container_id} is adopted already",
                container_id=spec.container_id, status="running",
            )  # fmt: skip
        adopted, log_fd = adopt(self._host, spec, message["pid"])
        reply_fds.append(log_fd)
        self._watch(adopted)

    def _exec(self, message: Message, fds: list[int], _reply_fds: list[int]) -> Waiting[Message]:
        container = self._find(message["container_id"])
        joined = yield from containers.join(
            self._host, container, handover_fd=fds[0], output_fd=fds[1], reap=self._reap
        )
        return {"exec_id": self._watch_joined(joined)}

    def _reap(self, pidfd: int) -> None:
        def on_end() -> None:
            self._selector.unregister(pidfd)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
            os.close(pidfd)

        self._selector.register(pidfd, selectors.EVENT_READ, partial(_survive, on_end))

    def _delete_named(self, message: Message, _fds: list[int], _reply_fds: list[int]) -> None:
        # Idempotent: a daemon whose create failed or was given up cannot know.
        name = message["container_id"]
        for request in [r for r in self._unfinished if r.creates is not None]:
            if request.creates == name:
                self._abandon(request)
        if (known := self._containers.get(name)) is not None:
            self._delete(known)
        else:  # one that a former launcher was making
            cgroup = Cgroup(self._host.layout, message["cgroups_path"])
            containers.remove_cgroup(cgroup)
            oci.forget(self._host.oci_state, name, cgroup)

    def _forget(self, message: Message, _fds: list[int], _reply_fds: list[int]) -> Message:
        return {"released": self._host.mounts.forget(message["upper"])}

    def _unpark(self, message: Message, _fds: list[int], _reply_fds: list[int]) -> None:
        self._discard(message["spare"])

    def _source(self, message: dict[str, Any]) -> tuple[str, Zygote | Spare | None]:
        spare = self._take_spare(message.get("spare") or "")
        if spare is not None:
            return "spare", spare
        zygote = self._zygotes.get(message.get("zygote") or "")
        return ("warm", zygote) if zygote is not None else ("cold", None)

    def _park(self, message: Message, _fds: list[int], _reply_fds: list[int]) -> None:
        zygote = self._zygotes.get(message["zygote"])
        if zygote is None:
            raise ContainerNotFound(message["zygote"])
        name, limits = message["spare"], from_json(Limits, message["limits"])
        spare = Spare.park(zygote, self._host.layout, message["cgroups_path"], limits)
        self._spares[name] = spare

        def on_exit() -> None:
            self._discard(name)
            self._send({"event": "spare_exit", "spare": name})

        self._selector.register(spare.child.pidfd, selectors.EVENT_READ, partial(_survive, on_exit))

    def _take_spare(self, name: str) -> Spare | None:
        spare = self._spares.pop(name, None)
        if spare is not None:
            with contextlib.suppress(KeyError, ValueError):  # one that could not be discarded
                self._selector.unregister(spare.child.pidfd)
        return spare

    def _discard(self, name: str) -> None:
        if (spare := self._take_spare(name)) is None:
            return
        try:
            spare.discard()
        except BaseException:
            self._spares[name] = spare  # the next request goes on with it
            raise

    def _find(self, container_id: str) -> Container:
        try:
            return self._containers[container_id]
        except KeyError:
            raise ContainerNotFound(container_id) from None

    def _watch(self, container: Container) -> None:
        self._containers[container.spec.container_id] = container
        register = self._selector.register
        on_exit, on_oom = partial(self._on_exit, container), partial(self._on_oom, container)
        register(container.exit_fd, selectors.EVENT_READ, partial(_survive, on_exit))
        register(container.oom_fd, selectors.EVENT_READ, partial(_survive, on_oom))

    def _on_exit(self, container: Container) -> None:
        self._selector.unregister(container.exit_fd)
        container.exited = True
        event: Message = {
            "event": "exit",
            "container_id": container.spec.container_id,
            "pid": container.pid,
            "wait_status": containers.read_exit(container.exit_fd),
            "oom_kills": int(container.out_of_memory),
            "memory_peak_bytes": 0,
        }
        try:
            usage = container.cgroup.usage()
            event["oom_kills"] = max(usage.oom_kills, event["oom_kills"])
            event["memory_peak_bytes"] = usage.memory_peak_bytes
        except OSError:  # the end must be told all the same: everybody waits for it
            sys.stderr.write(traceback.format_exc())
        self._send(event)

    def _on_oom(self, container: Container) -> None:
        """One process over the limit ends the whole sandbox: a half-dead kernel helps nobody."""
        container.cgroup.acknowledge_oom(container.oom_fd)
        if container.spec.zygote:
            return  # its pid 1 is that of its kernels' namespaces, too, and must live on
        # v1 tells before the victim is dead, and of nothing else; v2 counts other events too.
        if "memory" in self._host.layout.v1 or container.cgroup.usage().oom_kills:
            container.out_of_memory = True
            container.cgroup.kill()

    def _watch_joined(self, joined: Joined) -> int:
        self._serial += 1
        exec_id = self._serial
        self._joined[exec_id] = joined

        def on_exit() -> None:
            self._selector.unregister(joined.pidfd)
            del self._joined[exec_id]
            os.waitid(os.P_PIDFD, joined.pidfd, os.WEXITED)
            status = containers.read_exit(joined.exit_fd)
            close_fds([joined.pidfd, joined.exit_fd])
            self._send({"event": "exec_exit", "exec_id": exec_id, "wait_status": status})

        self._selector.register(joined.pidfd, selectors.EVENT_READ, partial(_survive, on_exit))
        return exec_id

    def _adopt_zygote(self, message: Message, fds: list[int], _reply_fds: list[int]) -> None:
        spec = self._find(message["container_id"]).spec
        zygote = Zygote(spec, socket.socket(fileno=os.dup(fds[0])))
        name = zygote.container_id
        self._zygotes[name] = zygote

        def on_end() -> None:
            # It never speaks here: readable means that the process has ended, though its
            # container lives on with what it forked.
            self._retire(name)
            self._send({"event": "zygote_exit", "container_id": name})

        self._selector.register(zygote, selectors.EVENT_READ, partial(_survive, on_end))

    def _retire_zygote(self, message: Message, _fds: list[int], _reply_fds: list[int]) -> None:
        self._retire(message["container_id"])

    def _retire(self, container_id: str) -> None:
        """Let a zygote end. Its container lives on, as the parent of what it forked."""
        zygote = self._zygotes.pop(container_id, None)
        if zygote is not None:
            self._selector.unregister(zygote)
            zygote.close()

    def _delete(self, container: Container) -> None:
        self._retire(container.spec.container_id)
        if container.oom_fd >= 0:
            with contextlib.suppress(KeyError):  # unregistered when its exit was seen
                self._selector.unregister(container.exit_fd)
            self._selector.unregister(container.oom_fd)
            container.oom_fd = -1
        containers.delete(self._host, container)
        # Only now: if that has failed, the next request goes on with it.
        del self._containers[container.spec.container_id]

    def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        try:
            send_message(self._sock, message, fds)
        except BrokenPipeError:
            self._running = False  # the daemon has gone


# Every one takes the message, its descriptors, and the list for the reply's.
_Done = Waiting[Message] | Message | None
_OPERATIONS: dict[str, Callable[[Launcher, Message, list[int], list[int]], _Done]] = {
    "create": Launcher._create,
    "adopt": Launcher._adopt,
    "exec": Launcher._exec,
    "delete": Launcher._delete_named,
    "forget": Launcher._forget,
    "adopt_zygote": Launcher._adopt_zygote,
    "retire_zygote": Launcher._retire_zygote,
    "park": Launcher._park,
    "unpark": Launcher._unpark,
}


def main() -> None:
    """Serve the socket given as descriptor argv[1], with argv[2] as staging directory.

    Only one launcher serves a staging directory: the next one waits until this one has ended.
    """
    sock = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(sock.fileno(), False)
    os.setsid()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The daemon's socket ends us; a signal meant for its process group must not.
        signal.signal(signum, signal.SIG_IGN)
    # With setgroups denied in the containers, what the launcher has, they would keep.
    os.setgroups([])
    os.umask(0o077)
    syscalls.unshare(CloneFlag.NEWNS)
    # Slave: later mounts of the host (homes) arrive here, ours never leave.
    syscalls.mount("none", "/", None, MountFlag.REC | MountFlag.SLAVE)
    lock_fd = _only_one(f"{sys.argv[2]}.lock")
    fault = os.environ.get(FAULT_VARIABLE)
    host = Host(
        layout=read_layout(),
        mounts=MountFactory(sys.argv[2]),
        oci_state=f"{sys.argv[2]}.oci",
        fail_at=Step(fault) if fault else None,
    )
    host.seccomp_program("notebook")
    # Every child is a copy of this process: a collection in it would copy every page.
    gc.disable()
    gc.freeze()
    send_message(sock, {"event": "ready", "pid": os.getpid()})
    Launcher(sock, host).run()
    os.close(lock_fd)


def _only_one(path: str) -> int:
    """Wait for the lock of a staging directory; a descriptor that holds it.

    A former launcher, whose daemon was killed, may be in the middle of a start. The lock is of the
    process alone (fcntl(2), F_SETLKW): no container inherits it.
    """
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    return fd


if __name__ == "__main__":
    main()
