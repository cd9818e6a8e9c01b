"""ipykernel in two halves: before the fork in the zygote, after it in the kernel.

Before: everything that needs no socket, thread, file of the user or identity. After: the rest,
by ipykernel's own IPKernelApp.initialize(), in which the steps already taken return at once.
Whatever the user or the profile chose that acts on an interpreter's start (variables, IPython
configuration, packages that shadow imported ones) makes the child execute a fresh interpreter
instead: a warm kernel behaves as a cold one, or it is a cold one.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import site
import socket
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from sandboxruntime.guest import environment, pages
from sandboxruntime.guest.history import IN_MEMORY, arm_history, closed_history
from sandboxruntime.guest.hygiene import reset_process
from sandboxruntime.guest.kernel import use_listening_descriptors
from sandboxruntime.guest.rehearsal import FIRST, SOON, rehearse

__all__ = ["Prepared", "finish", "learn_pages", "prepare", "reason_for_exec"]

# Read by the interpreter, libc, or a module at its import: too late for a process that has them.
EARLY_VARIABLES = (
    "PYTHON", "LD_", "MALLOC_", "GLIBC_", "IPYTHON", "JUPYTER_", "PYDEVD_", "DEBUGPY_", "MPL",
    "NUMPY_", "NPY_", "PANDAS_",
)  # fmt: skip
_CONFIG_NAMES = ("ipython_config", "ipython_kernel_config")
# Modules taken out of sys.modules, kept: to free them would touch more pages than to leave them.
_hidden: list[ModuleType] = []


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the zygote has made: its children's copies of it become the kernel's.

    `environment` is what the zygote was started with, `set_by_imports` what modules added to it.
    `packages` are the top-level names of everything imported, `ours` the modules that a kernel
    must not find imported, `folders` where IPython would look for configuration beside the
    user's own: looked up here once, because a child pays for every page that it touches.
    `code_ran`: what IPython runs before the first cell has been run, and there are no files of it.
    """

    app: Any
    kernel: Any
    environment: dict[str, str]
    set_by_imports: dict[str, str]
    packages: frozenset[str]
    ours: tuple[str, ...]
    folders: tuple[str, ...]
    code_ran: bool


def prepare(preload: list[str]) -> Prepared:
    """Import and initialise; rehearse a start to learn what else it imports, and import that."""
    given = dict(os.environ)
    from ipykernel.kernelapp import IPKernelApp
    from ipykernel.zmqshell import ZMQInteractiveShell

    app: Any = IPKernelApp.instance()
    sys.argv = ["ipykernel_launcher"]
    super(IPKernelApp, app).initialize([])
    app.init_pdb()
    imported = rehearse(partial(_start_plainly, app), app, SOON, _imported)
    for name in [*imported, *preload]:
        if name not in sys.modules:
            _import(name)
    with _replaced(ZMQInteractiveShell, "init_history", closed_history):
        app.kernel = kernel = _make_kernel(app)
    app.init_shell()
    app.init_gui_pylab()
    app.init_extensions()
    code_ran = not _startup_files(app.config_file_paths)
    if code_ran:  # without files it does the same for everybody
        app.init_code()
    kernel.shell.run_cell("pass", store_history=False, silent=True)
    # The formatters of results are made with the first one: most of what a first cell costs.
    kernel.shell.display_formatter.format(0)
    return Prepared(
        app,
        kernel,
        given,
        {name: value for name, value in os.environ.items() if given.get(name) != value},
        frozenset(name.partition(".")[0] for name in sys.modules),
        tuple(n for n in sys.modules if n.partition(".")[0] == "sandboxruntime"),
        tuple(app.config_file_paths),
        code_ran,
    )


def _startup_files(folders: Iterable[str]) -> bool:
    """Whether IPython would run files from one of these folders before the first cell."""
    for folder in folders:
        with contextlib.suppress(OSError):
            names = os.listdir(os.path.join(folder, "startup"))
            if any(name.endswith((".py", ".ipy")) for name in names):
                return True
    return False


def _start_plainly(app: Any, connection_file: str) -> None:
    app.connection_file = connection_file
    app.parse_command_line = app.load_config_file = lambda *_, **__: None
    app.initialize()


def _make_kernel(app: Any) -> Any:
    """The kernel object, as IPKernelApp.init_kernel() makes it, with no socket yet."""
    return app.kernel_class.instance(
        parent=app,
        session=app.session,
        log=app.log,
        profile_dir=app.profile_dir,
        user_ns=app.user_ns,
    )


def finish(prepared: Prepared, sock: socket.socket, argv: list[str], env: dict[str, str]) -> None:
    """Become the kernel that `argv` would execute. Returns when that has ended."""
    reason = reason_for_exec(prepared, argv, env)
    if reason is not None:
        from sandboxruntime.handover import execute

        execute(sock, argv, env, reason=reason)
    python, _, connection_file, first_fd, *_ = argv
    own = python == sys.executable
    reset_process(argv, {**env, **prepared.set_by_imports})
    if not own:
        environment.enter(environment.environment_of(python))
    sock.close()  # the hand-over has succeeded
    with open(connection_file, encoding="utf-8") as stream:
        prefix = json.load(stream)["ip"]
    for fd in range(int(first_fd), int(first_fd) + 5):
        os.set_inheritable(fd, False)
    use_listening_descriptors(prefix, int(first_fd))
    _hidden.extend(sys.modules.pop(name) for name in prepared.ours)
    _initialize(prepared, connection_file)
    gc.enable()
    prepared.app.start()


def reason_for_exec(prepared: Prepared, argv: list[str], env: dict[str, str]) -> str | None:
    """Why this kernel needs an interpreter of its own; None if the prepared one will do."""
    # Interpreter, this program, connection file, first fd; then ipykernel's arguments.
    if argv[4:] not in ([], [IN_MEMORY]):
        return "ipykernel has arguments"
    for name in sorted({*env, *prepared.environment}):
        if name.startswith(EARLY_VARIABLES) and env.get(name) != prepared.environment.get(name):
            return f"variable {name}"
    chosen = env.get("LC_ALL") or env.get("LC_CTYPE") or env.get("LANG") or ""
    if not chosen.lower().replace("-", "").endswith("utf8"):
        return f"locale {chosen!r} is not UTF-8"
    reason = _configured(prepared.folders, env)
    if argv[0] == sys.executable:
        return reason or _shadowed(prepared.packages, env)
    other = environment.environment_of(argv[0])
    reason = reason or environment.reason_for_exec(other)
    if other.prefix is not None:  # a virtual environment does not look for the user's packages
        return reason
    return reason or _shadowed(prepared.packages, env)


def _own_folder(env: Mapping[str, str]) -> str:
    return os.path.join(env.get("HOME", "/"), ".ipython", "profile_default")


def _configured(folders: tuple[str, ...], env: dict[str, str]) -> str | None:
    for folder in (_own_folder(env), *folders):
        for name in _CONFIG_NAMES:
            for suffix in (".py", ".json"):
                if os.path.exists(os.path.join(folder, name + suffix)):
                    return f"IPython configuration in {folder}"
    return None


def _shadowed(packages: frozenset[str], env: dict[str, str]) -> str | None:
    """Packages of the user that replace imported ones, or act at an interpreter's start."""
    folder = site.getusersitepackages()
    if not folder.startswith(env.get("HOME", "\0")) or not site.ENABLE_USER_SITE:
        return None if not site.ENABLE_USER_SITE else "another home directory"
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    for name in sorted(names):
        module = name.partition(".")[0]
        if name.endswith((".pth", ".egg", ".egg-link")):
            return f"{name} in the user's packages"
        if module in packages or module in ("sitecustomize", "usercustomize"):
            return f"the user's own package {module}"
    return None


def _initialize(prepared: Prepared, connection_file: str) -> None:
    """IPKernelApp.initialize() without what prepare() has done."""
    app, kernel = prepared.app, prepared.kernel
    level = app.log.level
    if all(handler.level > logging.INFO for handler in app.log.handlers):
        app.log.setLevel(logging.WARNING)  # or it makes records that no handler takes

    from IPython.core.application import BaseIPythonApplication

    app.connection_file = connection_file
    if not os.path.isdir(app.profile_dir.startup_dir):  # the first kernel of a fresh layer
        os.makedirs(app.profile_dir.location, exist_ok=True)
        app.profile_dir.check_dirs()
    _renew_identity(app, kernel)
    done = ["init_pdb", "init_shell", "init_gui_pylab", "init_extensions"]
    if prepared.code_ran and not _startup_files([_own_folder(os.environ)]):
        done.append("init_code")
    with contextlib.ExitStack() as stack:
        # The base class reads command line and configuration: reason_for_exec() saw to that.
        stack.enter_context(_replaced(BaseIPythonApplication, "initialize", _nothing))
        for name in done:
            stack.enter_context(_replaced(type(app), name, _nothing))
        stack.enter_context(_replaced(type(kernel), "instance", partial(_adopt, kernel)))
        app.initialize()
    app.log.setLevel(level)


def _nothing(*_: object) -> None:
    """Stands in for a step that has been taken."""


def _renew_identity(app: Any, kernel: Any) -> None:
    """What the zygote's objects drew at random: the messages of no two kernels share it."""
    app.session.session = str(uuid.uuid4())
    app.session.pid = os.getpid()
    kernel.ident = str(uuid.uuid4())
    kernel.shell.displayhook.topic = kernel._topic("execute_result")


def _adopt(kernel: Any, **traits: Any) -> Any:
    """Stands in for the kernel's constructor: give the prepared one what it lacks."""
    for name in (
        "control_stream", "debugpy_stream", "debug_shell_socket", "shell_stream",
        "control_thread", "shell_channel_thread", "iopub_thread", "iopub_socket", "stdin_socket",
    ):  # fmt: skip
        setattr(kernel, name, traits[name])
    kernel._stdout, kernel._stderr = sys.stdout, sys.stderr
    debugger = getattr(kernel, "debugger", None)
    if debugger is not None:
        debugger.shell_socket = traits["debug_shell_socket"]
        debugger.debugpy_client.debugpy_stream = traits["debugpy_stream"]
    shell = kernel.shell
    for hook in (shell.displayhook, shell.display_pub):
        hook.pub_socket = traits["iopub_socket"]
    arm_history(shell, sys.argv, traits["control_thread"].io_loop)
    shell.init_environment()
    if os.environ.get("JPY_SESSION_NAME"):
        shell.user_ns["__session__"] = os.environ["JPY_SESSION_NAME"]
    return kernel


@contextlib.contextmanager
def _replaced(owner: type, name: str, value: object) -> Iterator[None]:
    """An attribute of a class, replaced for the length of a block."""
    own = owner.__dict__.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)  # it was inherited
        else:
            setattr(owner, name, own)


def learn_pages(prepared: Prepared, first: Callable[[], None]) -> pages.Populator:
    """Rehearse once more, from what is prepared: the memory that `first` and a start touch.

    It also proves that this image's ipykernel can be started in two halves. Raises
    ChildProcessError if it cannot.
    """

    def start(connection_file: str) -> None:
        first()
        reset_process([sys.executable, "", connection_file, "3"], dict(os.environ))
        _initialize(prepared, connection_file)

    written, read = rehearse(start, prepared.app, FIRST, partial(_touched, pages.mapped()))
    return pages.Populator(pages.Runs(tuple(map(tuple, written)), tuple(map(tuple, read))))


def _touched(inherited: list[tuple[int, int, bool]]) -> list[Any]:
    runs = pages.touched(inherited)
    return [runs.written, runs.read]


def _imported() -> list[str]:
    return [name for name in sorted(sys.modules) if not name.startswith(("__", "sandboxruntime"))]


def _import(name: str) -> None:
    """Import a module ahead; one that cannot be is no error, the kernel will say so."""
    try:
        importlib.import_module(name)
    except Exception as exc:
        sys.stderr.write(f"zygote: {name} is not imported ahead: {exc}\n")
