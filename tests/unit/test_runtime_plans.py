"""The runtime's pure functions: validation, overlay options, id maps, outside verification."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import pkgutil
import resource
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandboxkernel.daemon.problems import CONVERSIONS, convert, error_from_launcher
from sandboxkernel.errors import KernelStartFailed, WorkFolderError
from sandboxruntime.cgroup import Limits
from sandboxruntime.errors import ContainerError, SetupError, SpecError, StateError, VerifyError
from sandboxruntime.identity import check_identity
from sandboxruntime.init import CREATE_STEPS, JOIN_STEPS, Ahead
from sandboxruntime.mounts import Attach, Mask, plan_mounts, plan_proc
from sandboxruntime.namespaces import render_map
from sandboxruntime.request import encode_error
from sandboxruntime.rlimits import DEFAULTS, NUMBERS
from sandboxruntime.rootfs import is_allowed, overlay_options
from sandboxruntime.spec import (
    MASKED_PATHS,
    READ_ONLY_PATHS,
    Bind,
    Credentials,
    IdMapping,
    Process,
    Rootfs,
    Spec,
    from_json,
    to_json,
)
from sandboxruntime.steps import BUNDLE_STEPS, CHILD_STEPS, LAUNCHER_STEPS, Step
from sandboxruntime.validate import validate
from sandboxruntime.verify import (
    NAMESPACES,
    Facts,
    check,
    read_limits,
    root_device,
    verify_running,
)
from tests.support import wait_until

BASE = 0x70000000
MAPPING = (IdMapping(0, BASE, 65536),)
SPEC = Spec(
    container_id="abc123",
    hostname="abc123",
    rootfs=Rootfs(lower=("/img/a", "/img/b"), upper="/u/upper", work="/u/work"),
    process=Process(uid=1000, gid=1000),
    uid_mappings=MAPPING,
    gid_mappings=MAPPING,
    cgroups_path="sandboxkernel/1000/abc123",
    limits=Limits(memory_bytes=1 << 30),
    binds=(Bind("/srv/class", "/srv/class", Credentials(1000, 1000), masked=(".ssh",)),),
)


def changed(**members: Any) -> Spec:
    return dataclasses.replace(SPEC, **members)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (changed(container_id="../x"), "container_id"),
        (changed(container_id=""), "container_id"),
        (changed(hostname="a" * 64), "hostname"),
        (changed(hostname="a b"), "hostname"),
        (changed(uid_mappings=()), "uid_mappings"),
        (changed(uid_mappings=(IdMapping(0, 0, 1),)), "uid_mappings"),
        (changed(gid_mappings=(IdMapping(0, 0xFFFFFFF0, 65536),)), "gid_mappings"),
        (changed(process=Process(uid=0, gid=0)), "process.uid"),
        (changed(rootfs=Rootfs(lower=(), upper="/u", work="/w")), "rootfs.lower"),
        (changed(rootfs=Rootfs(lower=("/a:b",), upper="/u", work="/w")), "rootfs"),
        (changed(rootfs=Rootfs(lower=("/a",), upper="/u/../etc", work="/w")), "rootfs"),
        (changed(cgroups_path="/abs"), "cgroups_path"),
        (changed(cgroups_path="a/../b"), "cgroups_path"),
        (changed(binds=(Bind("/x", "/proc", Credentials(1, 1)),)), "binds.destination"),
        (changed(binds=(Bind("/x", "/usr/lib", Credentials(1, 1)),)), "binds.destination"),
        (changed(binds=(Bind("/x", "/tmp", Credentials(1, 1)),)), "binds.destination"),
        (changed(binds=(Bind("/x", "/", Credentials(1, 1)),)), "binds.destination"),
        (changed(binds=(Bind("relative", "/x", Credentials(1, 1)),)), "binds.source"),
        (changed(binds=(Bind("/x", "/x", Credentials(1, 1), masked=("../y",)),)), "binds.masked"),
        (changed(masked_paths=("proc",)), "paths"),
        (changed(shm_bytes=0), "shm_bytes"),
        (changed(tmp_bytes=-1), "tmp_bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_spec_that_no_host_should_run_is_refused(spec: Spec, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate(spec)
    assert caught.value.field == field


def test_the_base_spec_is_valid() -> None:
    validate(SPEC)


@pytest.mark.parametrize(
    "data",
    [None, [], {"unknown": 1}, {**to_json(SPEC), "hostname": 3}, {**to_json(SPEC), "shm_bytes": True},
     {**to_json(SPEC), "rootfs": {"lower": "x"}}, {k: v for k, v in to_json(SPEC).items() if k != "limits"}],
)  # fmt: skip
def test_json_that_is_no_spec_is_refused(data: Any) -> None:
    with pytest.raises(SpecError):
        from_json(Spec, data)


def test_overlay_wants_the_topmost_layer_first_and_follows_no_marks() -> None:
    options = dict(overlay_options(SPEC.rootfs, ["1", "2"], "3"))
    assert options["lowerdir"] == "2:1"
    assert (options["redirect_dir"], options["metacopy"]) == ("nofollow", "off")
    assert "volatile" not in options
    assert ("volatile", None) in overlay_options(
        dataclasses.replace(SPEC.rootfs, volatile=True), ["1"], "2"
    )


@pytest.mark.parametrize(
    ("upper", "work", "names"),
    [
        ("/data/layers/7/upper", "/data/layers/7/work", ("3/upper", "3/work")),
        ("/data/a/upper", "/data/b/work", ("3/a/upper", "3/b/work")),
    ],
)
def test_an_overlay_tells_no_path_of_its_layers(
    upper: str, work: str, names: tuple[str, str]
) -> None:
    rootfs = dataclasses.replace(SPEC.rootfs, upper=upper, work=work)
    options = dict(overlay_options(rootfs, ["1", "2"], "3"))
    assert (options["upperdir"], options["workdir"]) == names


def test_maps_are_rendered_as_linux_reads_them() -> None:
    assert render_map(MAPPING) == f"0 {BASE} 65536\n"


@pytest.mark.parametrize(
    "path", ["/", "/etc", "/etc/x", "/proc/self", "/run/user/0", "/home", "/tmp", "/var/lib/x"]
)
def test_system_folders_can_never_be_mounted(path: str) -> None:
    assert not is_allowed(path, ("/",))


def test_allowed_roots_are_folders_and_not_prefixes() -> None:
    assert is_allowed("/srv/a", ("/srv/a",))
    assert is_allowed("/srv/a/b", ("/srv/a",))
    assert not is_allowed("/srv/ab", ("/srv/a",))


def test_what_is_masked_in_a_bind_follows_its_mount() -> None:
    operations = plan_mounts(SPEC)
    attach = operations.index(Attach(0, "/srv/class"))
    assert operations[attach + 1] == Mask("/srv/class/.ssh")


def test_every_step_of_the_child_has_a_function_in_the_enums_order() -> None:
    assert tuple(CREATE_STEPS) == CHILD_STEPS
    assert [s for s in CHILD_STEPS if s in JOIN_STEPS] == list(JOIN_STEPS)
    assert Step.SECCOMP == CHILD_STEPS[-1] == list(JOIN_STEPS)[-1]
    last = {Step.VERIFY, Step.HAND_OVER, *BUNDLE_STEPS}
    assert set(LAUNCHER_STEPS) | set(CHILD_STEPS) | last == set(Step)


def all_runtime_errors() -> list[type[ContainerError]]:
    import sandboxruntime

    for module in pkgutil.walk_packages(sandboxruntime.__path__, "sandboxruntime."):
        if ".guest" not in module.name and not module.name.endswith("launcher"):
            importlib.import_module(module.name)
    found, queue = [], [sandboxruntime.errors.ContainerError]
    while queue:
        error = queue.pop()
        found.append(error)
        queue += error.__subclasses__()
    return found


def test_every_runtime_error_converts_to_a_product_error() -> None:
    assert {error.__name__ for error in all_runtime_errors()} == set(CONVERSIONS)


def test_a_set_up_error_keeps_step_and_errno_on_its_way_to_the_user() -> None:
    error = SetupError("setup failed at mounts: no", step=Step.MOUNTS, errno=13)
    for converted in (convert(error), error_from_launcher(encode_error(error))):
        assert isinstance(converted, KernelStartFailed)
        assert (converted.step, converted.errno) == ("mounts", 13)


def test_a_work_folder_that_cannot_be_opened_is_the_users_error() -> None:
    error = SpecError("cannot open /x", field="binds.source")
    assert isinstance(convert(error), WorkFolderError)


HOST = dict.fromkeys(NAMESPACES, 1)
MOUNTINFO = "\n".join(
    f"1 1 0:1 / {point} rw,nosuid,nodev,noexec - {'overlay' if point == '/' else 'tmpfs'} x rw"
    for point in ["/", "/proc", "/dev", "/dev/null", "/dev/zero", "/dev/full", "/dev/random",
                  "/dev/urandom", "/dev/tty", "/dev/pts", "/dev/shm", "/dev/mqueue", "/tmp", "/run",
                  "/srv/class"]
)  # fmt: skip
MOUNTINFO += "".join(
    f"\n1 1 0:5 /null {point} rw,nosuid,noexec - devtmpfs x rw" for point in MASKED_PATHS
)
MOUNTINFO += "".join(
    f"\n1 1 0:1 / {point} ro,nosuid,nodev,noexec - proc x rw" for point in READ_ONLY_PATHS
)
SAFE_LIMITS = {name: (float(soft), float(hard)) for name, (soft, hard) in DEFAULTS.items()}
GOOD = Facts(
    pid=5,
    namespaces=dict.fromkeys(NAMESPACES, 2),
    status={
        "Uid": "\t".join([str(BASE + 1000)] * 4),
        "Gid": "\t".join([str(BASE + 1000)] * 4), "Groups": " ", "NoNewPrivs": "1", "Seccomp": "2",
        "Seccomp_filters": "1",
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0000000000000000"),
    },
    uid_map=f"0 {BASE} 65536",
    gid_map=f"0 {BASE} 65536",
    cgroup="",
    mountinfo=MOUNTINFO,
    descriptors={0: "/dev/null", 1: "pipe:[1]", 2: "pipe:[1]", 5: "socket:[2]"},
    cwd="/",
    limits=SAFE_LIMITS,
    setgroups="deny",
)  # fmt: skip


def test_a_confined_process_passes() -> None:
    check(GOOD, SPEC, HOST, filters=1)


def test_mounts_may_be_listed_in_any_order() -> None:
    """Linux lists them in the order in which they were made, and some are made ahead."""
    turned = "\n".join(reversed(MOUNTINFO.split("\n")))
    check(dataclasses.replace(GOOD, mountinfo=turned), SPEC, HOST, filters=1)
    assert root_device(turned) == root_device(MOUNTINFO) == "0:1"
    assert root_device(f"{MOUNTINFO}\n1 1 0:9 / / rw - ext4 x rw") == ""


def test_what_pid_1_mounts_ahead_is_what_a_spec_plans() -> None:
    ahead = Ahead(7, tuple(plan_proc()))
    assert len(ahead.operations) > 10
    assert ahead.fits(SPEC)
    assert not ahead.fits(dataclasses.replace(SPEC, masked_paths=MASKED_PATHS[1:]))
    assert not ahead.fits(dataclasses.replace(SPEC, read_only_paths=()))


GAPS: list[tuple[str, dict[str, Any]]] = [
    *(
        ("namespaces", {"namespaces": {**dict.fromkeys(NAMESPACES, 2), name: 1}})
        for name in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    ),
    ("credentials", {"status": {**GOOD.status, "Uid": "0\t0\t0\t0"}}),
    ("credentials", {"status": {**GOOD.status, "Gid": "0\t0\t0\t0"}}),
    ("credentials", {"status": {**GOOD.status, "Groups": "27 "}}),
    ("id_maps", {"uid_map": "0 0 4294967295"}),
    ("capabilities", {"status": {**GOOD.status, "CapBnd": "0000000000000001"}}),
    ("no_new_privs", {"status": {**GOOD.status, "NoNewPrivs": "0"}}),
    ("seccomp", {"status": {**GOOD.status, "Seccomp": "0"}}),
    ("seccomp", {"status": {**GOOD.status, "Seccomp_filters": "2"}}),
    ("descriptors", {"descriptors": {**GOOD.descriptors, 9: "/etc"}}),
    ("descriptors", {"descriptors": {**GOOD.descriptors, 1: "/sys/fs/cgroup"}}),
    ("cwd", {"cwd": "/somewhere"}),
    ("id_maps", {"gid_map": "0 0 4294967295"}),
    ("id_maps", {"setgroups": "allow"}),
    *(
        ("rlimits", {"limits": {**SAFE_LIMITS, name: pair}})
        for name, (soft, hard) in DEFAULTS.items()
        for pair in ((float(soft), math.inf), (float(soft), hard + 1.0))
    ),
    ("rlimits", {"limits": {}}),
    ("mounts", {"mountinfo": ""}),
    ("mounts", {"mountinfo": MOUNTINFO.replace("- overlay", "- ext4")}),
    ("mounts", {"mountinfo": MOUNTINFO.replace(" / / rw", " / /other rw")}),
    ("mounts", {"mountinfo": MOUNTINFO + "\n1 1 0:1 / /host rw - ext4 x rw"}),
    ("mounts", {"mountinfo": MOUNTINFO + "\n1 1 0:1 / / rw,nosuid,nodev - ext4 x rw"}),
    ("mounts", {"mountinfo": MOUNTINFO + "\n1 1 0:1 / / rw,nosuid,nodev - overlay x rw"}),
    ("mounts", {"mountinfo": MOUNTINFO.replace(" / / rw,nosuid", " / / rw")}),
    ("mounts", {"mountinfo": MOUNTINFO.replace("/dev/shm", "/dev/shn")}),
    ("mounts", {"mountinfo": MOUNTINFO.replace("/proc/kmsg", "/proc/acpi")}),
    ("mounts", {"mountinfo": MOUNTINFO.replace("/proc/sys ro", "/proc/acpi ro")}),
    ("mounts", {"mountinfo": MOUNTINFO.replace("/proc/sys ro", "/proc/sys rw")}),
    ("mounts", {"mountinfo": MOUNTINFO.replace("/null /proc/kmsg", "/kmsg /proc/kmsg")}),
    ("mounts", {"mountinfo": MOUNTINFO.replace("noexec - tmpfs", "noexec shared:3 - tmpfs")}),
    *(
        ("mounts", {"mountinfo": MOUNTINFO.replace(f" {point} {good}", f" {point} {bad}")})
        for point, good, bad in (
            ("/dev/zero", "rw,nosuid,nodev,noexec", "rw,nodev,noexec"),
            ("/dev/tty", "rw,nosuid,nodev,noexec", "rw,nosuid,nodev"),
            ("/dev/pts", "rw,nosuid,nodev,noexec", "rw,nosuid,nodev"),
            ("/proc/kmsg", "rw,nosuid,noexec", "rw,noexec"),
            ("/proc/sys", "ro,nosuid,nodev,noexec", "ro,nosuid,nodev"),
            ("/srv/class", "rw,nosuid,nodev,noexec", "rw,nosuid,noexec"),
            ("/tmp", "rw,nosuid,nodev,noexec", "rw,nodev,noexec"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "facts"), GAPS)
def test_any_gap_in_the_confinement_is_found(name: str, facts: dict[str, Any]) -> None:
    lacking = dataclasses.replace(GOOD, **facts)
    assert lacking != GOOD
    with pytest.raises(VerifyError) as caught:
        check(lacking, SPEC, HOST, filters=1)
    assert caught.value.check == name


MAY_CHANGE = {"descriptors", "cwd", "rlimits"}  # what a program may change is not looked at


@pytest.mark.parametrize(("name", "facts"), GAPS)
def test_any_gap_in_what_runs_already_is_found(name: str, facts: dict[str, Any]) -> None:
    cgroup: Any = SimpleNamespace(check_membership=lambda text: [], check_devices=lambda: [])
    lacking = dataclasses.replace(GOOD, **facts)
    if name in MAY_CHANGE or lacking.status["Seccomp_filters"] == "2":
        verify_running(lacking, SPEC, cgroup, HOST, filters=1)
        return
    with pytest.raises(VerifyError) as caught:
        verify_running(lacking, SPEC, cgroup, HOST, filters=1)
    assert caught.value.check == name


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("cgroup", {"check_membership": lambda text: ["cgroup v2: expected /a, found /b"]}),
        ("devices", {"check_devices": lambda: ["no device allow-list"]}),
        ("seccomp", {}),
    ],
)
def test_what_runs_already_is_held_to_its_cgroup_and_filters(
    name: str, members: dict[str, Any]
) -> None:
    fine = {"check_membership": lambda text: [], "check_devices": lambda: []}
    cgroup: Any = SimpleNamespace(**{**fine, **members})
    with pytest.raises(VerifyError) as caught:
        verify_running(GOOD, SPEC, cgroup, HOST, filters=2 if name == "seccomp" else 1)
    assert caught.value.check == name


def test_limits_are_read_as_linux_writes_them() -> None:
    found = read_limits(Path("/proc/self/limits").read_text())
    for name, number in NUMBERS.items():
        pair = resource.getrlimit(number)
        assert found[name] == tuple(math.inf if n == resource.RLIM_INFINITY else n for n in pair)


def test_no_name_of_a_process_or_folder_ends_a_line_of_proc() -> None:
    """str.splitlines() knows ten ends of a line, and Linux escapes one of them."""
    name = "/srv/class\rx\x0b\x1c\x85\u2028"
    good = dataclasses.replace(GOOD, mountinfo=MOUNTINFO.replace("/srv/class ", f"{name} "))
    bind = dataclasses.replace(SPEC.binds[0], source=name, destination=name)
    check(good, dataclasses.replace(SPEC, binds=(bind,)), HOST, filters=1)
    with pytest.raises(VerifyError):
        check(good, SPEC, HOST, filters=1)


def test_a_process_cannot_name_itself_pid_1() -> None:
    """Its name is the first line of /proc/PID/status."""
    pid = os.fork()
    if pid == 0:
        Path("/proc/self/comm").write_text("a\rNSpid:\t9\t1")
        signal.pause()
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        wait_until(lambda: b"NSpid" in Path(f"/proc/{pid}/comm").read_bytes())
        cgroup = SimpleNamespace(check_membership=lambda text: [])
        with pytest.raises(StateError, match="and none is 1"):
            check_identity(pid, pidfd, SPEC, cgroup)  # type: ignore[arg-type]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
