"""The composition root: configuration to running daemon. traitlets and tornado."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

from jupyter_core.paths import SYSTEM_CONFIG_PATH
from tornado import web
from traitlets import Bool, Dict, Enum, Float, Integer, List, Set, TraitError, Unicode
from traitlets.config import Application

from sandboxkernel import __version__
from sandboxkernel.daemon import logformat, systemd
from sandboxkernel.daemon.admission import Admission, raise_descriptor_limit
from sandboxkernel.daemon.checkup import Checkup
from sandboxkernel.daemon.configuration import load_configuration
from sandboxkernel.daemon.datadir import hold_data_dir
from sandboxkernel.daemon.events import EventLog
from sandboxkernel.daemon.handler import Services
from sandboxkernel.daemon.housekeeping import Housekeeping
from sandboxkernel.daemon.ids import RANGE_SIZE, IdRanges
from sandboxkernel.daemon.images import Images
from sandboxkernel.daemon.launcher_client import LauncherClient
from sandboxkernel.daemon.lease import LeaseJournal
from sandboxkernel.daemon.policy import Policy, check_min_spares
from sandboxkernel.daemon.recovery import forget_former_boots, recover
from sandboxkernel.daemon.removals import Removals
from sandboxkernel.daemon.reserve import Reserve
from sandboxkernel.daemon.routes import handlers
from sandboxkernel.daemon.runtime import Runtime
from sandboxkernel.daemon.server import NotFoundHandler, bind_api_socket, make_server
from sandboxkernel.daemon.service import Kernels
from sandboxkernel.daemon.standing import Standing
from sandboxkernel.daemon.zygotes import Zygotes
from sandboxkernel.errors import LauncherLost, SandboxError
from sandboxkernel.images.store import ImageStore
from sandboxkernel.images.userlayers import UserLayers
from sandboxkernel.limits import parse_grants, parse_profiles
from sandboxkernel.models import Version
from sandboxkernel.paths import Paths
from sandboxruntime.cgroup import Layout, read_layout
from sandboxruntime.verify import NAMESPACES, count_filters

__all__ = ["SandboxKernelDaemon", "main"]

API_VERSION = "1"
IDLE_CHECK_S = 1.0
REVIVALS_MAX = 1000  # launchers that were killed, before the daemon thinks better of it


class SandboxKernelDaemon(Application):
    """The root daemon of sandboxkernel."""

    name = Unicode("sandboxkerneld")
    description = Unicode("Runs Jupyter kernels in sandboxes, for the users of this machine.")
    version = Unicode(__version__)

    config_file = Unicode(
        "",
        help="Configuration file; default: sandboxkernel_config.py on the system's Jupyter path.",
    ).tag(config=True)
    profiles = Dict(help="Profiles by name; see docs/configuration.md.").tag(config=True)
    grants: List[dict[str, Any]] = List(help="Grants in order; the first that matches counts.").tag(
        config=True
    )
    default_profile = Unicode("default", help="Profile of kernels that name none.").tag(config=True)
    admin_groups = Set(Unicode(), help="Groups whose members see every sandbox.").tag(config=True)
    max_kernels = Integer(1000, min=1, help="Sandboxes at once on this host.").tag(config=True)
    max_connections = Integer(
        2048, min=16, help="Connections, and requests in progress, of one user who is not root."
    ).tag(config=True)
    max_zygotes = Integer(
        8, min=0, help="Prepared processes to fork kernels from; 0: every start is a cold one."
    ).tag(config=True)
    memory_reserve = Float(
        0.15,
        min=0.0,
        max=1.0,
        help="Share of the host's memory that must be available for anything to be made ahead; "
        "below half of it, zygotes are ended.",
    ).tag(config=True)
    id_range_base = Integer(
        0x70000000, min=2 * RANGE_SIZE, help="First host id of the users' id ranges."
    ).tag(config=True)
    id_range_count = Integer(4095, min=1, max=65535, help="How many users get a range.").tag(
        config=True
    )
    cgroup_parent = Unicode("sandboxkernel", help="Parent of all cgroups.").tag(config=True)
    socket_mode = Integer(
        0o666, help="Mode of the API socket. Who may do what is decided by the grants."
    ).tag(config=True)
    embedded = Bool(False, help="Started on demand: serve root only, stop when idle.").tag(
        config=True
    )
    idle_timeout_s = Float(
        60.0, min=0.1, help="Embedded: stop after so long without sandboxes."
    ).tag(config=True)
    orphan_timeout_s = Float(
        3600.0,
        min=0.0,
        help="Kernels whose Jupyter server has been gone for so long are ended; 0: never.",
    ).tag(config=True)
    log_style: Any = Enum(
        ["text", "json"], "text", help="One line an event for people, or one JSON object a line."
    ).tag(config=True)
    ready_fd = Integer(-1, help="Descriptor that gets one byte when the daemon serves.").tag(
        config=True
    )

    flags = Dict({"embedded": ({"SandboxKernelDaemon": {"embedded": True}}, "Stop when idle.")})
    aliases = Dict(
        {
            "config": "SandboxKernelDaemon.config_file",
            "ready-fd": "SandboxKernelDaemon.ready_fd",
            "idle-timeout": "SandboxKernelDaemon.idle_timeout_s",
            "log-level": "Application.log_level",
            "log-style": "SandboxKernelDaemon.log_style",
        }
    )

    def _log_level_default(self) -> int:
        return logging.INFO

    def initialize(self, argv: list[str] | None = None) -> None:
        """Command line over configuration file; a file that others can write is refused."""
        self.parse_command_line(argv)
        command_line: Any = self.config.copy()
        for path in self._config_files():
            settings = load_configuration(path, type(self))
            try:
                self.update_config(settings)
            except TraitError as exc:
                raise SandboxError(f"configuration file {path}: {exc}") from exc
            self._loaded_config_files.append(str(path))
        self.update_config(command_line)

    def _config_files(self) -> list[Path]:
        if self.config_file:
            return [Path(self.config_file).resolve()]
        # Root's own ~/.jupyter is left out: the daemon's policy is the system's.
        candidates = [Path(folder) / "sandboxkernel_config" for folder in SYSTEM_CONFIG_PATH]
        files = [c.with_suffix(s) for c in candidates for s in (".py", ".json")]
        return [path for path in files if path.is_file()]

    def start(self) -> None:
        """Serve until a signal, or until idle when embedded.

        SIGTERM leaves the kernels to the next daemon, SIGINT (Ctrl-C) ends them.
        """
        if os.geteuid() != 0:
            raise SandboxError("the daemon needs root", hint="Start it with sudo or as a service.")
        level = self.log.getEffectiveLevel()
        logformat.configure(self.log_style, level)
        self.log = logging.getLogger(__name__)  # traitlets' own has a handler of its own
        os.umask(0o022)
        asyncio.run(self._serve())

    def _policy(self) -> Policy:
        try:
            profiles, grants = parse_profiles(self.profiles), parse_grants(self.grants)
            if self.default_profile not in profiles:
                raise SandboxError(
                    f"default_profile is {self.default_profile!r}, which is no profile",
                    hint=f"Known: {', '.join(sorted(profiles))}.",
                )
            check_min_spares(profiles.values(), grants, self.max_zygotes)
        except SandboxError as exc:
            source = ", ".join(self._loaded_config_files) or "the command line"
            raise SandboxError(f"configuration of {source}: {exc.message}", hint=exc.hint) from exc
        return Policy(
            profiles=profiles,
            grants=grants,
            default_profile=self.default_profile,
            admins=frozenset(self.admin_groups),
            max_kernels=self.max_kernels,
            cgroup_parent=self.cgroup_parent,
        )

    async def _serve(self) -> None:
        policy = self._policy()
        descriptors = raise_descriptor_limit()
        paths = Paths.from_environment()
        async with contextlib.AsyncExitStack() as stack:
            mode = 0o600 if self.embedded else self.socket_mode
            paths.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            await stack.enter_async_context(hold_data_dir(paths))
            sock = systemd.take_listening_socket(paths.api_socket)
            if sock is None:
                sock = bind_api_socket(paths.api_socket, mode)
                stack.callback(paths.api_socket.unlink, missing_ok=True)
            kernels, services = await self._compose(policy, paths, stack)
            application = web.Application(
                list(handlers(services)), default_handler_class=NotFoundHandler
            )
            admission = Admission(per_user=self.max_connections, descriptors=descriptors)
            server = make_server(application, admission)
            server.add_socket(sock)
            stack.callback(server.stop)
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, self._stop.set)
            loop.add_signal_handler(signal.SIGINT, self._stop_with_kernels)
            self.log.info("serving %s", paths.api_socket)
            if self.ready_fd >= 0:
                os.write(self.ready_fd, b"1")
                os.close(self.ready_fd)
            systemd.notify("READY=1")
            standing = Standing(policy.profiles.values(), kernels.images, kernels.zygotes)
            keeper = asyncio.create_task(standing.keep())
            await self._until_stopped(kernels)
            keeper.cancel()
            systemd.notify("STOPPING=1")
            await kernels.removals.close()
            if self._end_kernels:
                await kernels.release_all()
            else:
                # Closed before the handlers are cancelled: no client is to take that for an answer.
                server.stop()
                await server.close_all_connections()
                await kernels.zygotes.leave()
        if self._failure:
            raise SandboxError(self._failure, hint="Start it again.")

    async def _compose(
        self, policy: Policy, paths: Paths, stack: contextlib.AsyncExitStack
    ) -> tuple[Kernels, Services]:
        for directory, mode in (
            (paths.kernels_dir, 0o711), (paths.users_dir, 0o700), (paths.scratch_dir, 0o700),
        ):  # fmt: skip
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
            directory.chmod(mode)
        layout = read_layout()
        removals = Removals()
        forget_former_boots(paths.scratch_dir, removals)
        journal = LeaseJournal(paths.leases_dir)
        events = EventLog()
        launcher = LauncherClient(self._on_launcher_event)
        self._staging = paths.run_dir / "mnt"
        await launcher.start(self._staging)
        stack.push_async_callback(launcher.stop)
        layers = UserLayers(paths.users_dir)
        runtime = Runtime(
            launcher=launcher,
            layout=layout,
            host_namespaces={n: os.stat(f"/proc/self/ns/{n}").st_ino for n in NAMESPACES},
            guest_source=_guest_source("kernel.py"),
            host_filters=count_filters(),
        )
        zygotes = Zygotes(
            runtime=runtime,
            layers=layers,
            paths=paths,
            journal=journal,
            cgroup_parent=policy.cgroup_parent,
            first_uid=self.id_range_base - RANGE_SIZE,
            guest_source=_guest_source("zygote.py"),
            maximum=self.max_zygotes,
            reserve=Reserve(self.memory_reserve),
            removals=removals,
        )
        kernels = Kernels(
            policy=policy,
            paths=paths,
            runtime=runtime,
            zygotes=zygotes,
            images=Images(ImageStore(paths.images_dir)),
            layers=layers,
            ids=IdRanges(
                paths.data_dir / "ids.json", base=self.id_range_base, count=self.id_range_count
            ),
            journal=journal,
            events=events,
            removals=removals,
        )
        self._kernels, self._launcher = kernels, launcher
        keeper = asyncio.create_task(self._keep_launcher())
        stack.callback(keeper.cancel)
        found = await recover(journal, kernels, runtime)
        if found.adopted or found.ended or found.released:
            self.log.warning(
                "of a former daemon: %d sandboxes run on, %d had ended, %d are given back (%.2f s)",
                len(found.adopted), len(found.ended), len(found.released), found.took_s,
            )  # fmt: skip
        housekeeping = Housekeeping(kernels, layers, launcher, paths)
        return kernels, Services(
            kernels=kernels,
            housekeeping=housekeeping,
            checkup=Checkup(kernels, journal, housekeeping, paths),
            version=self._version(layout),
        )

    def _on_launcher_event(self, event: dict[str, Any]) -> None:
        if event.get("event") == "lost":
            self._launcher_lost.set()
        else:
            self._kernels.on_launcher_event(event)

    async def _keep_launcher(self) -> None:
        """Whenever the launcher was killed, start another one, which looks after what runs."""
        for _ in range(REVIVALS_MAX):
            await self._launcher_lost.wait()
            self._launcher_lost.clear()
            self.log.error("the launcher has ended: starting another one")
            try:
                await self._launcher.start(self._staging)
                await self._kernels.readopt()
            except LauncherLost:
                continue  # that one was killed, too
            except Exception:
                self.log.exception("no launcher can be started")
                break
            self._launcher.open()
        # The next daemon takes over what runs; whoever supervises this one starts it.
        self._failure = "the daemon stopped for want of a launcher; kernels run on"
        self._stop.set()

    def _version(self, layout: Layout) -> Version:
        return Version(
            version=__version__,
            api=API_VERSION,
            min_api=API_VERSION,
            embedded=self.embedded,
            linux=os.uname().release,
            cgroup_mode=layout.mode,
        )

    async def _until_stopped(self, kernels: Kernels) -> None:
        idle_since = time.monotonic()
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), IDLE_CHECK_S)
            kernels.removals.run_due()
            if self.orphan_timeout_s:
                await kernels.end_orphans(self.orphan_timeout_s)
            if any(True for _ in kernels.all()):
                idle_since = time.monotonic()
            if self.embedded and time.monotonic() - idle_since > self.idle_timeout_s:
                self.log.info("idle for %g s: stopping", self.idle_timeout_s)
                return

    def _stop_with_kernels(self) -> None:
        self._end_kernels = True
        self._stop.set()

    _kernels: Kernels
    _launcher: LauncherClient
    _staging: Path

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._stop = asyncio.Event()
        self._launcher_lost = asyncio.Event()
        self._end_kernels = False
        self._failure = ""


def _guest_source(name: str) -> str:
    """A program that runs inside; it travels with the hand-over."""
    return resources.files("sandboxruntime.guest").joinpath(name).read_text()


def main(argv: list[str] | None = None) -> None:
    """Run the daemon in the foreground."""
    app = SandboxKernelDaemon()
    try:
        app.initialize(argv)
        app.start()
    except SandboxError as exc:
        sys.stderr.write(f"sandboxkerneld: {exc}\n")
        sys.exit(1)
    except OSError as exc:  # a full disk, a run directory that cannot be made
        app.log.debug("", exc_info=exc)
        sys.stderr.write(f"sandboxkerneld: {exc}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
