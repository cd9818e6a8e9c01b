"""From a request to a spec and a payload. Pure: golden files in tests/unit hold it in place."""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from sandboxkernel.errors import RequestError, WorkFolderError
from sandboxkernel.limits import NATIVE, Profile, Subject
from sandboxkernel.models import CONNECTION_PORTS, IPYKERNEL, KernelCreate, Limits
from sandboxruntime.cgroup import IoLimit
from sandboxruntime.cgroup import Limits as CgroupLimits
from sandboxruntime.handover import FIRST_FD, Payload
from sandboxruntime.spec import (
    HAND_OVER_DIR,
    Bind,
    Credentials,
    Executor,
    IdMapping,
    Process,
    Rootfs,
    Spec,
)
from sandboxruntime.validate import is_normalised

__all__ = [
    "CONNECTION_FILE",
    "HOME",
    "INSIDE_ID",
    "Ground",
    "ZygoteGround",
    "is_below",
    "plan_cgroup_limits",
    "plan_payload",
    "plan_spec",
    "plan_zygote_payload",
    "plan_zygote_spec",
    "work_folder_of",
]

INSIDE_ID = 1000  # uid and gid of the user inside
USER = "sandbox"
HOME = f"/home/{USER}"
CONNECTION_FILE = f"{HAND_OVER_DIR}/connection.json"
GUEST_FILE = f"{HAND_OVER_DIR}/kernel.py"
MODULE_OPTION = "--sandboxkernel-module="  # read by sandboxruntime.guest.kernel
ZYGOTE_FILE = f"{HAND_OVER_DIR}/zygote.py"
PACKAGES = "/opt/sandboxkernel"  # inside, where it is needed: what holds sandboxruntime
ZYGOTE_MEMORY = 2 << 30
ZYGOTE_PIDS = 64
CPU_PERIOD_US = 100_000
RANGE_SIZE = 65536
# What a user can write to; everything else of the image is read-only for Landlock too.
WRITABLE = (HOME, "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", HAND_OVER_DIR)
# Libraries that would start a thread per host core, and thrash inside a smaller quota.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
                    "NUMEXPR_NUM_THREADS")  # fmt: skip
PYTHON_LABEL = "org.sandboxkernel.python"


@dataclass(frozen=True, slots=True)
class Ground:
    """What was found or allocated for one sandbox before planning.

    `layers` are directories, lowest first. `hidden` are the entries of the caller's home that
    start with a dot, relative to the work folder. `environment_roots` are where an environment may
    lie beside the profile's work folders. `disk` is the device number of the data directory's disk.
    `cores` is how many the host has, `package` the directory of sandboxruntime on it.
    """

    container_id: str
    subject: Subject
    profile: Profile
    limits: Limits
    layers: tuple[str, ...]
    upper: str
    work: str
    volatile: bool
    id_base: int
    cgroup: str
    image_env: Mapping[str, str]
    image_labels: Mapping[str, str]
    hidden: tuple[str, ...]
    disk: tuple[int, int] | None
    cores: int
    environment_roots: tuple[str, ...] = ()
    package: str = ""


def work_folder_of(request: KernelCreate) -> str | None:
    """The folder to mount; None mounts none. Raises WorkFolderError for a senseless path."""
    folder, cwd = request.work_folder or request.cwd, request.cwd
    for path in (folder, cwd):
        if path is not None and not is_normalised(path):
            raise WorkFolderError(
                f"{path!r} is not a normalised absolute path",
                hint="Leave out '.', '..', '//' and a trailing '/'.",
                field="work_folder",
            )
    if folder is not None and cwd is not None and not is_below(cwd, folder):
        raise WorkFolderError(
            f"the working directory {cwd} is outside the work folder {folder}", field="cwd"
        )
    return folder


def is_below(path: str, folder: str) -> bool:
    return path == folder or folder == "/" or path.startswith(folder + "/")


def plan_cgroup_limits(limits: Limits, disk: tuple[int, int] | None) -> CgroupLimits:
    """Limits of the API as limits of a cgroup."""
    io: tuple[IoLimit, ...] = ()
    if limits.io is not None:
        if disk is None:
            raise RequestError("the data directory's disk has no device number", field="limits.io")
        io = (
            IoLimit(
                major=disk[0],
                minor=disk[1],
                read_bytes_per_s=limits.io.read_bytes_per_s,
                write_bytes_per_s=limits.io.write_bytes_per_s,
                read_ops_per_s=limits.io.read_ops_per_s,
                write_ops_per_s=limits.io.write_ops_per_s,
            ),
        )
    return CgroupLimits(
        memory_bytes=limits.memory_bytes,
        swap_bytes=limits.swap_bytes or 0,
        cpu_quota_us=None if limits.cpus is None else round(limits.cpus * CPU_PERIOD_US),
        cpu_period_us=CPU_PERIOD_US,
        cpu_weight=limits.cpu_weight,
        pids=limits.pids,
        io=io,
    )


def plan_spec(request: KernelCreate, ground: Ground) -> Spec:
    """The container that runs this request on this ground."""
    binds = [
        Bind(
            source=mount.source,
            destination=mount.destination,
            # The administrator chose it: root opens it, and it shows as the user's own.
            opener=Credentials(uid=0, gid=0),
            read_only=mount.read_only,
        )
        for mount in ground.profile.mounts
    ]
    subject = ground.subject
    caller = Credentials(uid=subject.uid, gid=subject.gid, groups=subject.groups)
    roots = (*ground.profile.work_folders, *ground.environment_roots)
    binds += [
        Bind(source=path, destination=path, opener=caller, read_only=True, allowed=roots)
        for path in (request.environment.folders if request.environment else ())
    ]
    folder = work_folder_of(request)
    if folder is not None:
        binds.append(
            Bind(
                source=folder,
                destination=folder,
                opener=caller,
                masked=ground.hidden,
                allowed=ground.profile.work_folders,
            )
        )
    executor = _plan_executor(ground)
    if executor is not None:
        binds.append(_package_bind(ground.package))
    mapping = (IdMapping(container_id=0, host_id=ground.id_base, size=RANGE_SIZE),)
    limits = ground.limits
    return Spec(
        container_id=ground.container_id,
        hostname=ground.container_id,
        rootfs=Rootfs(
            lower=ground.layers, upper=ground.upper, work=ground.work, volatile=ground.volatile
        ),
        process=Process(uid=INSIDE_ID, gid=INSIDE_ID),
        uid_mappings=mapping,
        gid_mappings=mapping,
        cgroups_path=ground.cgroup,
        limits=plan_cgroup_limits(limits, ground.disk),
        binds=tuple(binds),
        shm_bytes=limits.shm_bytes or 64 << 20,
        tmp_bytes=limits.tmp_bytes or 256 << 20,
        writable=(*WRITABLE, *(bind.destination for bind in binds if not bind.read_only)),
        executor=executor,
    )


def plan_environment(request_env: Mapping[str, str], ground: Ground) -> dict[str, str]:
    """Image, then defaults, then profile, then what the user chose; identity comes last."""
    cores = min(ground.cores, math.ceil(ground.limits.cpus or ground.cores))
    return _environment(ground.image_env, max(1, cores), {**ground.profile.env, **request_env})


def _environment(
    image_env: Mapping[str, str], threads: int, chosen: Mapping[str, str]
) -> dict[str, str]:
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        **image_env,
        "SHELL": "/bin/sh",
        # CPython's frozen modules stay on: without them every start is slower, and all that a
        # debugger misses is a breakpoint in the twenty modules that start the interpreter.
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **{name: str(threads) for name in THREAD_VARIABLES},
        **chosen,
        "HOME": HOME,
        "USER": USER,
        "LOGNAME": USER,
        "XDG_RUNTIME_DIR": HAND_OVER_DIR,
        # ipykernel's parent poller would end the kernel: its parent is pid 1 of its namespace.
        "JPY_PARENT_PID": "1",
    }


def python_of(image_labels: Mapping[str, str]) -> str:
    """The image's interpreter. Raises RequestError for an image that cannot run kernels."""
    python = image_labels.get(PYTHON_LABEL)
    if python is None:
        raise RequestError(
            f"the image has no label {PYTHON_LABEL}, so it cannot run kernels", field="image"
        )
    return python


def _plan_executor(ground: Ground) -> Executor | None:
    program = ground.profile.executor
    if program == NATIVE:
        return None
    return Executor(program=program, python=python_of(ground.image_labels), packages=PACKAGES)


def _package_bind(package: str) -> Bind:
    return Bind(
        source=package,
        destination=f"{PACKAGES}/{posixpath.basename(package)}",
        opener=Credentials(uid=0, gid=0),
        read_only=True,
        own_inodes=True,  # or every user could watch when others' kernels start
    )


@dataclass(frozen=True, slots=True)
class ZygoteGround:
    """What was allocated for one zygote. `uid` and `gid` are host ids; all zygotes share the gid.

    `package` is the directory of sandboxruntime on the host.
    """

    container_id: str
    uid: int
    gid: int
    layers: tuple[str, ...]
    upper: str
    work: str
    cgroup: str
    image_env: Mapping[str, str]
    image_labels: Mapping[str, str]
    profile: Profile
    package: str


def plan_zygote_spec(ground: ZygoteGround) -> Spec:
    """The container of a zygote: of the image alone, with nothing of any user."""
    return Spec(
        container_id=ground.container_id,
        hostname=ground.container_id,
        rootfs=Rootfs(lower=ground.layers, upper=ground.upper, work=ground.work, volatile=True),
        process=Process(uid=ground.uid, gid=ground.gid),
        uid_mappings=(),
        gid_mappings=(),
        cgroups_path=ground.cgroup,
        limits=CgroupLimits(memory_bytes=ZYGOTE_MEMORY, swap_bytes=0, pids=ZYGOTE_PIDS),
        binds=(_package_bind(ground.package),),
        seccomp_profile="zygote",
        zygote=True,
    )


def plan_zygote_payload(ground: ZygoteGround, guest_source: str) -> Payload:
    """Program and environment of a zygote; its two sockets follow FIRST_FD."""
    return Payload(
        argv=[
            python_of(ground.image_labels), ZYGOTE_FILE, str(FIRST_FD), str(FIRST_FD + 1),
            PACKAGES, *ground.profile.preload,
        ],
        # One thread, so that BLAS makes no pool; a kernel gets its number after the fork.
        env=_environment(ground.image_env, 1, ground.profile.env),
        cwd="/",
        files={ZYGOTE_FILE: guest_source},
    )  # fmt: skip


def plan_payload(
    request: KernelCreate, ground: Ground, *, socket_prefix: str, guest_source: str
) -> Payload:
    """What the confined process receives: for a kernel its connection file and sockets too."""
    env = plan_environment(request.env, ground)
    cwd = request.cwd or request.work_folder or HOME
    if request.argv is not None:
        if not request.argv or not request.argv[0]:
            raise RequestError("argv is empty", field="argv")
        return Payload(argv=list(request.argv), env=env, cwd=cwd)
    python = python_of(ground.image_labels)
    environment = request.environment
    if environment is not None:
        env["PATH"] = f"{posixpath.dirname(environment.python)}:{env['PATH']}"
        # The system's own interpreter has other names outside than in an image.
        if any(is_below(environment.python, folder) for folder in environment.folders):
            python = environment.python
    connection = {
        "transport": "ipc",
        "ip": socket_prefix,
        **{name: port for port, name in enumerate(CONNECTION_PORTS, start=1)},
        "key": request.key,
        "signature_scheme": request.signature_scheme,
        "kernel_name": request.kernel_name,
    }
    if request.curve_publickey and request.curve_secretkey:
        connection["curve_publickey"] = request.curve_publickey
        connection["curve_secretkey"] = request.curve_secretkey
    arguments = list(request.extra_arguments)
    if environment is not None and environment.module != IPYKERNEL:
        arguments.insert(0, f"{MODULE_OPTION}{environment.module}")
    return Payload(
        argv=[python, GUEST_FILE, CONNECTION_FILE, str(FIRST_FD), *arguments],
        env=env,
        cwd=cwd,
        files={CONNECTION_FILE: json.dumps(connection, indent=1), GUEST_FILE: guest_source},
    )
