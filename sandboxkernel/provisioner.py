"""The kernel provisioner: Jupyter's side of a sandbox.

Called by jupyter_client's KernelManager (provisioning/provisioner_base.py), by the same instance
across restarts. Traps that shaped it: `poll` runs ten times a second, so it must not talk to the
daemon; the `restart` argument of kill and terminate lies, so only `cleanup` discards; a manager
gives up waiting after five seconds, so a launch must cope with a kernel that still dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import zmq
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from msgspec import structs
from traitlets import Bool, Float, Integer, List, Unicode, Union

from sandboxkernel import units
from sandboxkernel.client import ExitWatch, SandboxClient
from sandboxkernel.creation import Creation
from sandboxkernel.environment import select_environment
from sandboxkernel.errors import (
    Conflict,
    DaemonUnavailable,
    KernelNotFound,
    KernelNotRunning,
    LimitError,
    RemovalPending,
    SandboxError,
)
from sandboxkernel.launch_daemon import ensure_daemon
from sandboxkernel.manager_keys import connection_info, take_keys
from sandboxkernel.models import (
    ExitInfo,
    IoLimit,
    Kernel,
    KernelConnection,
    KernelCreate,
    KernelRestart,
    Limits,
)
from sandboxkernel.python_environment import requested_kernel

__all__ = ["SandboxProvisioner"]

# How long calls, and starts, wait for a daemon that is being restarted, and how often they look.
AGAIN_S, START_AGAIN_S, AGAIN_POLL_S = 5.0, 30.0, 0.1
_Method = str | Callable[[SandboxClient], Any]
POLL_S = 0.02  # wait() looks this often when the event loop cannot watch a descriptor
TOLD_S, TOLD_POLL_S = 1.0, 0.001  # the end of a kernel that has been killed is here at once


def _size(text: str) -> Any:
    return Union([Integer(), Unicode()], default_value=None, allow_none=True, help=text).tag(
        config=True
    )


class SandboxProvisioner(KernelProvisionerBase):
    """Starts each kernel in a sandbox of its own, through the sandboxkernel daemon.

    Limits are wishes: the daemon lowers them to what the profile and the caller's grants allow.
    """

    profile = Unicode(
        None, allow_none=True, help="Profile of the administrator's configuration, e.g. bio101."
    ).tag(config=True)
    memory = _size('Memory cap, e.g. "2G".')
    swap = _size("Swap on top of memory.")
    shm = _size("Size of /dev/shm.")
    tmp = _size("Size of /tmp.")
    io_read = _size("Disk reads, bytes per second.")
    io_write = _size("Disk writes, bytes per second.")
    cpus = Float(None, allow_none=True, help="CPU cap in cores, e.g. 0.5.").tag(config=True)
    pids = Integer(None, allow_none=True, help="Processes and threads.").tag(config=True)
    ephemeral = Bool(False, help="Throw the sandbox's layer away at its end.").tag(config=True)
    work_folder = Unicode(
        None,
        allow_none=True,
        help="Folder to mount; the notebook must lie in it. Default: the notebook's folder.",
    ).tag(config=True)
    pass_env = List(
        Unicode(), help='Variables of the server that the kernel may see, e.g. ["COURSE_*"].'
    ).tag(config=True)

    _client: SandboxClient | None = None
    _kernel: Kernel | None = None
    _watch: ExitWatch | None = None
    _exit: ExitInfo | None = None
    _running: bool = False
    _reviving: asyncio.Task[None] | None = None

    @property
    def has_process(self) -> bool:
        """True from launch_kernel until wait has seen the end."""
        return self._running

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Settle encryption, environment, and the command as LocalProvisioner. For every launch."""
        extra_arguments = list(kwargs.pop("extra_arguments", None) or [])
        encryption = kwargs.pop(
            "transport_encryption", getattr(self.parent, "transport_encryption", "disabled")
        )
        self._settle_encryption(encryption)
        self._tell_reason("")
        cmd = self.parent.format_kernel_cmd() if self.parent else list(self.kernel_spec.argv)
        kwargs = await super().pre_launch(cmd=cmd, **kwargs)
        kwargs["extra_arguments"] = extra_arguments
        return kwargs

    def _settle_encryption(self, wanted: Any) -> None:
        """CurveZMQ keys as LocalProvisioner makes them; kept across restarts.

        The manager checks nothing after us: without keys, `required` would be silently plain.
        """
        manager = self.parent
        if manager is None or not hasattr(manager, "_transport_encryption_policy"):
            return
        policy = manager._transport_encryption_policy(wanted)
        if policy == "disabled":
            return
        supported = policy == "required" or manager._kernel_supports_curve_encryption()
        if supported and manager.curve_publickey is None:
            manager.curve_publickey, manager.curve_secretkey = zmq.curve_keypair()

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the sandbox, or start it again; returns the connection info, which is the truth.

        `cmd` is understood, not run: see kernel_command. Errors carry a text for the person who
        opened the notebook; JupyterLab shows it in its dialog.
        """
        self._forget_process()
        environment, arguments = requested_kernel(cmd, self._manager())
        arguments += kwargs.get("extra_arguments") or []
        env = select_environment(
            kwargs.get("env") or dict(os.environ),
            server=os.environ,
            kernelspec=self.kernel_spec.env,
            chosen=self.pass_env,
        )
        cwd = os.path.abspath(kwargs.get("cwd") or os.getcwd())
        kernel = await self._restart(env, cwd, arguments) if self._kernel else None
        request = structs.replace(self._request(env, cwd, arguments), environment=environment)
        creation = Creation(request, self.log)
        try:
            kernel = kernel or await self._create(creation)
            self._watch = await self._watch_exit(kernel)
        except BaseException:  # a cancelled start, too: the manager will not know the kernel
            creation.abandon()
            raise
        self._kernel = kernel
        self._running = True
        self.connection_info = connection_info(kernel, self._manager())
        return self.connection_info

    async def _restart(self, env: dict[str, str], cwd: str, arguments: list[str]) -> Kernel | None:
        """The same sandbox with a new process; None when the daemon does not know it any more."""
        assert self._kernel is not None
        request = KernelRestart(cwd=cwd, env=env, extra_arguments=arguments)
        try:
            kernel: Kernel = await self._call_again(
                "restart", self._kernel.id, request, within_s=START_AGAIN_S
            )
            return kernel
        except KernelNotFound:
            return None

    async def _create(self, creation: Creation) -> Kernel:
        """Start a sandbox; a daemon is started first where none answers and we may."""
        self._client = self._client or SandboxClient()
        try:
            try:
                kernel: Kernel = await self._call(creation.run)
            except DaemonUnavailable:
                self._client = await asyncio.to_thread(ensure_daemon, log=self.log)
                kernel = await self._call_again(creation.run, within_s=START_AGAIN_S)
            return kernel
        except Conflict as exc:
            found = await self._attach(creation.request.kernel_id)
            if found is None:
                raise
            self.log.info("attached to kernel %s, which was running: %s", found.kernel_id, exc)
            return found

    async def _attach(self, kernel_id: str) -> Kernel | None:
        """Take over a kernel of this id that runs and that nobody is attached to.

        It is one of a server that was killed, or the daemon was killed before it could answer the
        request to start it. None when it is somebody's, or is no kernel that runs.
        """
        kernel: Kernel = await self._call("inspect", kernel_id)
        if kernel.attached or kernel.state != "running" or kernel.connection is None:
            return None
        found: KernelConnection = await self._call("connection", kernel_id)
        take_keys(self._manager(), found)
        return kernel

    def _request(self, env: dict[str, str], cwd: str, arguments: list[str]) -> KernelCreate:
        manager = self._manager()
        session = manager.session
        curve = [getattr(manager, f"curve_{kind}key", None) for kind in ("public", "secret")]
        public, secret = [key.decode() if isinstance(key, bytes) else key for key in curve]
        return KernelCreate(
            kernel_id=self.kernel_id or manager.kernel_id,
            kernel_name=manager.kernel_name or "",
            profile=self.profile or None,
            limits=self._limits(),
            cwd=cwd,
            work_folder=os.path.abspath(self.work_folder) if self.work_folder else None,
            env=env,
            extra_arguments=arguments,
            ephemeral=self.ephemeral,
            key=session.key.decode(),
            signature_scheme=session.signature_scheme,
            curve_publickey=public,
            curve_secretkey=secret,
        )

    def _manager(self) -> Any:
        """The KernelManager: it holds the key, and there is none to launch without it."""
        if self.parent is None:
            raise SandboxError("a kernel provisioner needs a kernel manager as its parent")
        return self.parent

    def _limits(self) -> Limits:
        sizes = {
            f"{name}_bytes": units.parse_size(getattr(self, name), field=name)
            for name in ("memory", "swap", "shm", "tmp")
            if getattr(self, name) is not None
        }
        rates = {
            f"{name}_bytes_per_s": units.parse_size(value, field=f"io_{name}")
            for name in ("read", "write")
            if (value := getattr(self, f"io_{name}")) is not None
        }
        if self.pids is not None and self.pids < 1:
            raise LimitError(f"pids is {self.pids}, not 1 or more", field="pids")
        return Limits(
            **sizes, cpus=self.cpus, pids=self.pids, io=IoLimit(**rates) if rates else None
        )

    async def poll(self) -> int | None:
        """The exit code, or None while it runs: one poll(2), no request."""
        if self._exit is None and self._watch is not None:
            try:
                self._exit = self._watch.poll()
                if self._watch.is_lost:
                    self._look_for_daemon()
            except DaemonUnavailable as exc:
                self._exit = ExitInfo(reason="signaled", signal=9, message=str(exc))
            except KernelNotFound:
                self._exit = ExitInfo(reason="signaled", signal=9, message="removed", asked=True)
            if self._exit is not None:
                self._on_exit(self._exit)
        if self._exit is not None:
            return self._exit.returncode()
        return None if self._running else 0

    async def wait(self) -> int | None:
        """Return once the process has ended."""
        while (code := await self.poll()) is None:
            await asyncio.sleep(POLL_S)
        self._running = False
        return code

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel's process group. A kernel that has ended is not an error."""
        if signum == 0:
            return
        if self._kernel is None or await self.poll() is not None:
            return
        try:
            await self._call_again("signal", self._kernel.id, signum)
        except (KernelNotFound, KernelNotRunning, DaemonUnavailable) as exc:
            self.log.debug("signal %s not sent: %s", signum, exc)

    async def kill(self, restart: bool = False) -> None:
        """SIGKILL for everything in the sandbox."""
        if self._kernel is None or await self.poll() is not None:
            return
        try:
            await self._call_again("kill", self._kernel.id)
            await self._told()
        except (KernelNotFound, KernelNotRunning, DaemonUnavailable) as exc:
            self.log.debug("kernel %s not killed: %s", self.kernel_id, exc)

    async def _told(self) -> None:
        """Let the end, which the daemon has seen, come in here, too.

        A manager that finds it running at its first look takes the next one 100 ms later.
        """
        deadline = time.monotonic() + TOLD_S
        while self._watch is not None and await self.poll() is None:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(TOLD_POLL_S)

    async def terminate(self, restart: bool = False) -> None:
        """SIGTERM for the kernel's process group."""
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """Release the sandbox unless a restart follows. The only place that discards anything."""
        if restart or self._kernel is None:
            return
        kernel_id = self._kernel.id
        self._forget_process()
        self._kernel = None
        try:
            await self._call_again("remove", kernel_id)
        except (KernelNotFound, DaemonUnavailable) as exc:
            self.log.debug("kernel %s not removed: %s", self.kernel_id, exc)
        except RemovalPending as exc:  # it has ended, and the rest is the daemon's
            self.log.warning("%s", exc)

    def resolve_path(self, path_str: str) -> str | None:
        """Paths are the same inside and outside; what is not mounted does not exist here."""
        path = Path(path_str)
        if not path.is_absolute() and self._kernel is not None and self._kernel.cwd:
            path = Path(os.path.normpath(Path(self._kernel.cwd) / path))
        folder = self.work_folder or (self._kernel.cwd if self._kernel else None)
        if folder is None or not path.is_relative_to(folder) or not path.exists():
            return None
        return path.as_posix()

    async def get_provisioner_info(self) -> dict[str, Any]:
        """What load_provisioner_info needs to re-attach, as JSON types."""
        info = await super().get_provisioner_info()
        connection: dict[str, Any] = dict(info["connection_info"])
        for name, value in connection.items():
            if isinstance(value, bytes):
                connection[name] = value.decode()
        info["connection_info"] = connection
        if self._kernel is not None:
            info["sandbox_id"] = self._kernel.id
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Attach to a running sandbox. Raises KernelNotFound when it is gone."""
        await super().load_provisioner_info(provisioner_info)
        connection: dict[str, Any] = dict(provisioner_info["connection_info"])
        if isinstance(connection.get("key"), str):
            connection["key"] = connection["key"].encode()
        self.connection_info = cast(KernelConnectionInfo, connection)
        sandbox_id = provisioner_info.get("sandbox_id")
        if sandbox_id is None:
            return
        self._client = await asyncio.to_thread(ensure_daemon, log=self.log)
        kernel: Kernel = await self._call_again("inspect", sandbox_id)
        self._forget_process()
        self._kernel = kernel
        self._watch = await self._watch_exit(kernel)
        self._running = True

    async def _watch_exit(self, kernel: Kernel) -> ExitWatch:
        assert self._client is not None
        watch = partial(self._client.watch_exit, kernel.id, kernel.generation, kernel=kernel)
        found: ExitWatch = await self._off_loop(watch)
        return found

    def _on_exit(self, exit_info: ExitInfo) -> None:
        if exit_info.asked or exit_info.code == 0:
            return
        text = f"kernel ended: {exit_info.message}"
        self.log.warning("%s (kernel %s)", text, self.kernel_id)
        self._tell_reason(text)

    def _tell_reason(self, text: str) -> None:
        # jupyter_server's manager serves this at /api/kernels; a plain manager has no such trait.
        if self.parent is not None and self.parent.has_trait("reason"):
            self.parent.reason = text

    def _forget_process(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._exit = None
        self._running = False

    async def _call(self, method: _Method, *arguments: Any) -> Any:
        """A blocking call of the client, or with it, off the loop: starts run in parallel."""
        assert self._client is not None
        try:
            call = getattr(self._client, method) if isinstance(method, str) else method
            first = () if isinstance(method, str) else (self._client,)
            return await self._off_loop(partial(call, *first, *arguments))
        except SandboxError as exc:
            self.log.debug("%s failed: %s", method, exc)
            raise

    async def _call_again(self, method: _Method, *arguments: Any, within_s: float = AGAIN_S) -> Any:
        """A call that may be repeated: it waits for a daemon that is being restarted."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                return await self._call(method, *arguments)
            except DaemonUnavailable:
                if time.monotonic() > deadline:
                    raise
            await self._revive_daemon()
            await asyncio.sleep(AGAIN_POLL_S)

    def _look_for_daemon(self) -> None:
        if self._reviving is None or self._reviving.done():
            self._reviving = asyncio.create_task(self._revive_daemon())

    async def _revive_daemon(self) -> None:
        """Start an embedded daemon again, where that is ours to do; kernels run on meanwhile."""
        with contextlib.suppress(DaemonUnavailable):
            await self._off_loop(partial(ensure_daemon, log=self.log))

    @staticmethod
    async def _off_loop(call: Callable[[], Any]) -> Any:
        try:
            answer = asyncio.get_running_loop().run_in_executor(None, call)
        except RuntimeError:
            # `jupyter run` shuts down in an atexit handler, when no thread starts any more.
            return call()
        return await answer
