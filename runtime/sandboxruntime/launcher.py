"""The launcher: one thread, root, standard library. Serves one daemon over a socket.

Requests are JSON objects with `op`, `serial` and descriptors (channel.py); every request gets
one reply with its serial; exits are reported as events. When the daemon's socket closes, the
launcher deletes its containers and ends.

op       members                  descriptors              reply
create   spec                     hand-over socket, log    pid, timings; pidfd of pid 1
exec     container_id             hand-over socket, log    exec_id
delete   container_id                                      (nothing)
forget   upper                                             released: bool
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from sandboxruntime import container as containers
from sandboxruntime import syscalls
from sandboxruntime.cgroup import read_layout
from sandboxruntime.channel import close_fds, recv_message, send_message
from sandboxruntime.container import Container, Host, Joined
from sandboxruntime.errors import ContainerError, ContainerNotFound
from sandboxruntime.rootfs import MountFactory
from sandboxruntime.spec import Spec, from_json
from sandboxruntime.steps import Step
from sandboxruntime.syscalls import CloneFlag, MountFlag

__all__ = ["Launcher", "encode_error", "main"]

FAULT_VARIABLE = "SANDBOXRUNTIME_FAIL_AT"  # a Step: the fault-injection tests set it


def _survive(callback: Callable[[], None]) -> None:
    """One container's trouble must not end all others: it goes to the daemon's log."""
    try:
        callback()
    except (ContainerError, OSError):
        sys.stderr.write(traceback.format_exc())


def encode_error(exc: BaseException) -> dict[str, Any]:
    """An error as it travels to the daemon: class name, message and the class's own facts."""
    facts = {name: value for name, value in vars(exc).items() if isinstance(value, str | int)}
    return {"type": type(exc).__name__, "message": str(exc), **facts}


class Launcher:
    """The event loop: one socket to the daemon, one pidfd and one OOM descriptor per container."""

    def __init__(self, sock: socket.socket, host: Host) -> None:
        self._sock = sock
        self._host = host
        self._containers: dict[str, Container] = {}
        self._joined: dict[int, Joined] = {}
        self._serial = 0
        self._running = True
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ, self._serve)

    def run(self) -> None:
        """Serve until the daemon's socket closes, then delete what is left."""
        try:
            while self._running:
                for key, _ in self._selector.select():
                    # An earlier callback of this round may have deleted what this one is for.
                    if self._selector.get_map().get(key.fd) is key:
                        callback: Callable[[], None] = key.data
                        callback()
        finally:
            for container in list(self._containers.values()):
                self._delete(container)
            self._host.mounts.close()

    def _serve(self) -> None:
        message, fds = recv_message(self._sock)
        if message is None:
            self._running = False
            return
        reply: dict[str, Any] = {"serial": message.get("serial")}
        reply_fds: list[int] = []
        try:
            reply |= self._dispatch(message, fds, reply_fds)
        except (ContainerError, OSError) as exc:
            reply["error"] = encode_error(exc)
        finally:
            close_fds(fds)
        self._send(reply, reply_fds)

    def _dispatch(
        self, message: dict[str, Any], fds: list[int], reply_fds: list[int]
    ) -> dict[str, Any]:
        match message["op"]:
            case "create":
                spec = from_json(Spec, message["spec"])
                created = containers.create(self._host, spec, handover_fd=fds[0], log_fd=fds[1])
                self._adopt(created)
                reply_fds.append(created.pidfd)
                return {"pid": created.pid, "timings": created.timings}
            case "exec":
                container = self._find(message["container_id"])
                joined = containers.join(
                    self._host, container, handover_fd=fds[0], output_fd=fds[1]
                )
                return {"exec_id": self._watch_joined(joined)}
            case "delete":
                # Idempotent: a daemon whose create failed or was given up cannot know.
                if (known := self._containers.get(message["container_id"])) is not None:
                    self._delete(known)
                return {}
            case "forget":
                return {"released": self._host.mounts.forget(message["upper"])}
            case other:
                raise ContainerError(f"unknown operation {other!r}")

    def _find(self, container_id: str) -> Container:
        try:
            return self._containers[container_id]
        except KeyError:
            raise ContainerNotFound(container_id) from None

    def _adopt(self, container: Container) -> None:
        self._containers[container.spec.container_id] = container
        register = self._selector.register
        on_exit, on_oom = partial(self._on_exit, container), partial(self._on_oom, container)
        register(container.pidfd, selectors.EVENT_READ, partial(_survive, on_exit))
        register(container.oom_fd, selectors.EVENT_READ, partial(_survive, on_oom))

    def _on_exit(self, container: Container) -> None:
        self._selector.unregister(container.pidfd)
        os.waitid(os.P_PIDFD, container.pidfd, os.WEXITED)
        container.exited = True
        usage = container.cgroup.usage()
        self._send(
            {
                "event": "exit",
                "container_id": container.spec.container_id,
                "wait_status": containers.read_exit(container.exit_fd),
                "oom_kills": max(usage.oom_kills, int(container.out_of_memory)),
                "memory_peak_bytes": usage.memory_peak_bytes,
            }
        )

    def _on_oom(self, container: Container) -> None:
        """One process over the limit ends the whole sandbox: a half-dead kernel helps nobody."""
        container.cgroup.acknowledge_oom(container.oom_fd)
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

    def _delete(self, container: Container) -> None:
        with contextlib.suppress(KeyError):  # unregistered when its exit was seen
            self._selector.unregister(container.pidfd)
        self._selector.unregister(container.oom_fd)
        del self._containers[container.spec.container_id]
        containers.delete(self._host, container)

    def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        try:
            send_message(self._sock, message, fds)
        except BrokenPipeError:
            self._running = False  # the daemon has gone; run() cleans up


def main() -> None:
    """Serve the socket given as descriptor argv[1], with argv[2] as staging directory."""
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
    fault = os.environ.get(FAULT_VARIABLE)
    host = Host(
        layout=read_layout(),
        mounts=MountFactory(sys.argv[2]),
        fail_at=Step(fault) if fault else None,
    )
    host.seccomp_program("notebook")
    # Every child is a copy of this process: a collection in it would copy every page.
    gc.disable()
    gc.freeze()
    send_message(sock, {"event": "ready", "pid": os.getpid()})
    Launcher(sock, host).run()


if __name__ == "__main__":
    main()
