"""What travels over the API. Pure: msgspec structs, no policy.

Requests refuse unknown members, so that a misspelt limit is an error and not a missing limit.
Sizes are bytes, times are seconds or RFC 3339 in UTC, CPU is in cores.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

__all__ = [
    "CONNECTION_PORTS",
    "IPYKERNEL",
    "CheckFinding",
    "CheckReport",
    "Confinement",
    "ConnectionInfo",
    "DiskUsage",
    "DiskUsageEntry",
    "Event",
    "ExecExit",
    "ExecOutput",
    "ExecRequest",
    "ExitInfo",
    "Image",
    "ImageList",
    "ImagePrepare",
    "IoLimit",
    "Kernel",
    "KernelCreate",
    "KernelList",
    "KernelRestart",
    "Limits",
    "Progress",
    "PruneReport",
    "PythonEnvironment",
    "SignalRequest",
    "Stats",
    "UserLayer",
    "UserLayerChange",
    "UserLayerDiff",
    "UserLayerList",
    "Version",
]

KERNEL_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
PROFILE_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
PATH_MAX = 4096
IPYKERNEL = "ipykernel_launcher"
CONNECTION_PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")

KernelId = Annotated[str, Meta(pattern=KERNEL_ID_PATTERN, description="Jupyter's kernel id")]
ProfileName = Annotated[str, Meta(pattern=PROFILE_PATTERN)]
AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\x00]*$", max_length=PATH_MAX)]
EnvironmentName = Annotated[str, Meta(pattern=r"^[^=\x00]+$", max_length=256)]
EnvironmentValue = Annotated[str, Meta(pattern=r"^[^\x00]*$", max_length=128 * 1024)]
Argument = Annotated[str, Meta(pattern=r"^[^\x00]*$", max_length=32 * 1024)]


class _Request(Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Base of what clients send."""


class _Response(Struct, frozen=True):
    """Base of what the daemon sends; clients ignore members that they do not know."""


class IoLimit(_Request, kw_only=True, frozen=True):
    """Block I/O caps of every disk the sandbox writes to. None: not capped."""

    read_bytes_per_s: int | None = None
    write_bytes_per_s: int | None = None
    read_ops_per_s: int | None = None
    write_ops_per_s: int | None = None


class Limits(_Request, kw_only=True, frozen=True):
    """Caps of one sandbox: a wish in a request, what is in force in a response.

    Values are checked by the daemon (limits/), not here, so that its error can name the bounds.
    """

    memory_bytes: int | None = None
    swap_bytes: int | None = None
    cpus: float | None = None
    cpu_weight: int | None = None
    pids: int | None = None
    shm_bytes: int | None = None
    tmp_bytes: int | None = None
    io: IoLimit | None = None


class KernelRestart(_Request, kw_only=True, frozen=True):
    """What a restart may change; everything else is kept from the first start."""

    cwd: AbsolutePath | None = None
    env: dict[EnvironmentName, EnvironmentValue] = {}
    extra_arguments: list[Argument] = []


class PythonEnvironment(_Request, kw_only=True, frozen=True):
    """A Python environment of the host's, which a kernel sees at its own paths, read-only.

    `python` is the program to run, `base` what it leads to when links are followed: a file in one
    of the `folders`, or the image's own interpreter. `module` is the kernel: ipykernel, or another
    whose sockets are pyzmq's.
    """

    python: AbsolutePath
    base: AbsolutePath
    folders: Annotated[list[AbsolutePath], Meta(min_length=1, max_length=8)]
    module: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$", max_length=256)] = IPYKERNEL


class KernelCreate(_Request, kw_only=True, frozen=True):
    """Start one kernel in a sandbox of its own.

    `env` is what the user or the kernelspec chose: the client has already dropped everything
    else (environment.py). `work_folder` is what is mounted at its own path, read-write; `cwd`
    lies in it; without one, the work folder is `cwd`; without both, no folder is mounted.
    `argv` replaces the image's kernel command: a sandbox without Jupyter, as `run` makes it.
    `environment` replaces the image's interpreter and packages: the kernel is that environment's.
    """

    kernel_id: KernelId
    kernel_name: Annotated[str, Meta(max_length=256)] = ""
    profile: ProfileName | None = None
    limits: Limits = Limits()
    cwd: AbsolutePath | None = None
    work_folder: AbsolutePath | None = None
    env: dict[EnvironmentName, EnvironmentValue] = {}
    extra_arguments: list[Argument] = []
    argv: list[Argument] | None = None
    environment: PythonEnvironment | None = None
    ephemeral: bool = False
    key: Annotated[str, Meta(max_length=4096)] = ""
    signature_scheme: Annotated[str, Meta(max_length=64)] = "hmac-sha256"
    curve_publickey: Annotated[str, Meta(max_length=40)] | None = None
    curve_secretkey: Annotated[str, Meta(max_length=40)] | None = None


class ConnectionInfo(_Response, kw_only=True, frozen=True):
    """Where the five sockets are. Stays the same across restarts. Carries no key."""

    transport: Literal["ipc"] = "ipc"
    ip: str
    shell_port: int = 1
    iopub_port: int = 2
    stdin_port: int = 3
    control_port: int = 4
    hb_port: int = 5


class KernelConnection(_Response, kw_only=True, frozen=True):
    """All that a client needs to attach to a running kernel: for its owner alone.

    `session_name` is what the front end called the notebook (JPY_SESSION_NAME).
    """

    connection: ConnectionInfo
    kernel_name: str
    key: str
    signature_scheme: str
    curve_publickey: str | None = None
    curve_secretkey: str | None = None
    session_name: str | None = None


class ExitInfo(_Response, kw_only=True, frozen=True):
    """How a kernel's process ended. `message` is one sentence for the person whose kernel it was.

    `generation` counts the starts of this kernel from 1. `asked` is true when the end was asked
    for through the API (stop, kill, restart, rm).
    """

    reason: Literal["exited", "signaled", "oom_killed"]
    code: int | None = None
    signal: int | None = None
    message: str = ""
    asked: bool = False
    generation: int = 1
    memory_peak_bytes: int | None = None

    def returncode(self) -> int:
        """The exit code as subprocess reports it: negative for a signal."""
        return self.code if self.code is not None else -(self.signal or 9)


class Confinement(_Response, kw_only=True, frozen=True):
    """What outside verification read back from Linux, not what was asked for.

    `device_list` is where the device allow-list is: cgroup "v1", "bpf" (v2), "" for none.
    """

    namespaces: dict[str, int]
    uid_map: str
    gid_map: str
    capabilities: dict[str, str]
    no_new_privs: bool
    seccomp_filters: int
    landlock_abi: int
    cgroups: dict[str, str]
    mounts: list[str]
    device_list: str = ""


class MountInForce(_Response, kw_only=True, frozen=True):
    """One mount of a sandbox, with the options that Linux shows."""

    destination: str
    type: str
    options: list[str]


class InForce(_Response, kw_only=True, frozen=True):
    """What holds for a sandbox now, read from Linux for this answer.

    `differs` names the limits that are not as they were set. Resource limits (getrlimit(2)) are
    soft and hard, null is none.
    """

    limits: Limits
    differs: list[str]
    rlimits: dict[str, list[int | None]]
    mounts: list[MountInForce]


class Removal(_Response, kw_only=True, frozen=True):
    """A removal that has failed, and is tried again at `next_at` and until it succeeds."""

    reason: str
    attempts: int
    since: datetime
    next_at: datetime


class Kernel(_Response, kw_only=True, frozen=True):
    """One kernel and its sandbox. `id` is the sandbox's own 12 hex digits.

    `attached`: somebody waits for its end, as the Jupyter server does that it belongs to.
    `removal`: something of it could not be given back yet.
    """

    kernel_id: str
    id: str
    kernel_name: str
    owner_uid: int
    owner_name: str
    profile: str
    image: str
    image_digest: str
    state: Literal["starting", "running", "paused", "exited"]
    executor: str = "native"
    start_path: Literal["cold", "warm", "spare"] = "cold"
    cold_reason: str = ""
    generation: int = 1
    pid: int | None = None
    created_at: datetime
    started_at: datetime | None = None
    limits: Limits
    cwd: str | None = None
    ephemeral: bool = False
    attached: bool = False
    network: str = "none"
    connection: ConnectionInfo | None = None
    exit: ExitInfo | None = None
    removal: Removal | None = None
    in_force: InForce | None = None
    confinement: Confinement | None = None
    timings_ms: dict[str, float] = {}


class KernelList(_Response, kw_only=True, frozen=True):
    """One page of kernels; `next` is the `after` of the following page."""

    kernels: list[Kernel]
    next: str | None = None


class SignalRequest(_Request, kw_only=True, frozen=True):
    """A signal for the kernel's process group."""

    signal: Annotated[int, Meta(ge=1, le=64)]


class ExecRequest(_Request, kw_only=True, frozen=True):
    """Run one more program inside a running sandbox, as confined as its kernel."""

    argv: Annotated[list[Argument], Meta(min_length=1, max_length=1024)]
    env: dict[EnvironmentName, EnvironmentValue] = {}
    cwd: AbsolutePath | None = None
    stdin: Annotated[str, Meta(max_length=1024 * 1024)] = ""


class ExecOutput(_Response, kw_only=True, frozen=True):
    """A piece of output of an exec, one NDJSON line."""

    stream: Literal["stdout", "stderr"]
    data: str


class ExecExit(_Response, kw_only=True, frozen=True):
    """The last NDJSON line of an exec: its exit code, 128 + n for signal n."""

    exit_code: int


class Stats(_Response, kw_only=True, frozen=True):
    """What the sandbox uses now, read from its cgroup."""

    kernel_id: str
    time: datetime
    memory_bytes: int
    memory_peak_bytes: int
    memory_limit_bytes: int | None
    cpu_usage_s: float
    cpu_throttled_s: float
    cpus: float | None
    pids: int
    pids_limit: int | None
    io_read_bytes: int
    io_write_bytes: int
    oom_kills: int


class Event(_Response, kw_only=True, frozen=True):
    """Something that happened; one NDJSON line of /v1/events."""

    time: datetime
    action: str
    kernel_id: str | None = None
    owner_uid: int | None = None
    detail: dict[str, Any] = {}


class Progress(_Response, kw_only=True, frozen=True):
    """One NDJSON line of long work. `done` and `total` are counts of `unit` ("files", "bytes")."""

    phase: str
    done: int = 0
    total: int | None = None
    unit: str = ""


class ImagePrepare(_Request, kw_only=True, frozen=True):
    """Make an image ready to start kernels from; `host` is the zero-download default."""

    ref: Annotated[str, Meta(max_length=512)] = "host"
    refresh: bool = False


class Image(_Response, kw_only=True, frozen=True):
    """An image of the store."""

    ref: str
    digest: str
    size_bytes: int
    layers: list[str]
    created_at: datetime
    labels: dict[str, str] = {}
    in_use: int = 0


class ImageList(_Response, kw_only=True, frozen=True):
    """The images of the store."""

    images: list[Image]


class UserLayer(_Response, kw_only=True, frozen=True):
    """The writable layer of one user on one image lineage."""

    owner_uid: int
    lineage: str
    size_bytes: int
    files: int
    in_use: int
    modified_at: datetime


class UserLayerList(_Response, kw_only=True, frozen=True):
    """User layers that the caller may see."""

    layers: list[UserLayer]


class UserLayerChange(_Response, kw_only=True, frozen=True):
    """One path that differs from the image: A added, C changed, D deleted."""

    path: str
    change: Literal["A", "C", "D"]
    size_bytes: int = 0


class UserLayerDiff(_Response, kw_only=True, frozen=True):
    """Differences of a user layer from its image; `truncated` when there were more."""

    lineage: str
    changes: list[UserLayerChange]
    truncated: bool = False


class DiskUsageEntry(_Response, kw_only=True, frozen=True):
    """Disk blocks in use by one kind of thing."""

    kind: Literal["images", "user_layers", "scratch", "logs"]
    count: int
    size_bytes: int
    reclaimable_bytes: int


class DiskUsage(_Response, kw_only=True, frozen=True):
    """What the daemon's data occupies (st_blocks, not apparent size)."""

    entries: list[DiskUsageEntry]
    free_bytes: int


class PruneReport(_Response, kw_only=True, frozen=True):
    """What a prune removed, or would remove."""

    removed: list[str]
    freed_bytes: int
    dry_run: bool


class CheckFinding(_Response, kw_only=True, frozen=True):
    """Something that should not be, or not be so. `repaired` tells whether it is gone now."""

    kind: Literal["cgroup", "sockets", "scratch", "journal", "image", "removal"]
    object: str
    problem: str
    repaired: bool = False
    hint: str = ""


class CheckReport(_Response, kw_only=True, frozen=True):
    """What a check has found. `checked` counts what was looked at, by kind."""

    findings: list[CheckFinding]
    checked: dict[str, int]


class Zygote(_Response, kw_only=True, frozen=True):
    """A prepared process from which kernels are forked. `spares` are the ids of those that wait.

    `domain` is who shares it: a profile, or a profile and one user's uid.
    """

    id: str
    image_digest: str
    domain: str
    preload: list[str] = []
    forks: int
    age_s: float
    spares: list[str] = []
    memory_bytes: int
    retired: bool = False


class ZygoteList(_Response, kw_only=True, frozen=True):
    """The zygotes of the daemon; `starting` are the domains of those being made."""

    zygotes: list[Zygote]
    starting: list[str] = []


class Version(_Response, kw_only=True, frozen=True):
    """The daemon's version and the API versions that it speaks."""

    version: str
    api: str
    min_api: str
    embedded: bool
    linux: str
    cgroup_mode: str
    features: dict[str, str] = {}


def to_json(value: object) -> bytes:
    """Encode a model as JSON."""
    return msgspec.json.encode(value)
