"""From request to spec and payload; the golden file shows policy changes in review."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandboxkernel.daemon.environments import check_environment
from sandboxkernel.daemon.plan import (
    CONNECTION_FILE,
    Ground,
    plan_payload,
    plan_spec,
    work_folder_of,
)
from sandboxkernel.errors import RequestError, WorkFolderError
from sandboxkernel.limits import DEFAULT_PROFILE, Subject
from sandboxkernel.models import IoLimit, KernelCreate, Limits, PythonEnvironment
from sandboxruntime.errors import SpecError
from sandboxruntime.handover import Payload
from sandboxruntime.mounts import plan_masks, plan_mounts
from sandboxruntime.spec import Bind, Credentials, Spec, from_json, to_json
from sandboxruntime.validate import validate

GOLDEN = Path(__file__).parent / "golden" / "spec.json"
REQUEST = KernelCreate(
    kernel_id="k-1", kernel_name="sandboxed-python", cwd="/home/alice/course/week1",
    work_folder="/home/alice/course", key="secret-key", env={"COURSE": "bio"},
)  # fmt: skip
GROUND = Ground(
    container_id="0123456789ab",
    subject=Subject(uid=1001, gid=1002, name="alice", home="/home/alice", groups=(1002, 1003)),
    profile=DEFAULT_PROFILE,
    limits=Limits(memory_bytes=1 << 30, swap_bytes=0, cpus=0.5, cpu_weight=100, pids=128,
                  shm_bytes=64 << 20, tmp_bytes=128 << 20, io=IoLimit(write_bytes_per_s=1 << 20)),
    layers=("/var/lib/sandboxkernel/images/unpacked/a", "/var/lib/sandboxkernel/images/unpacked/b"),
    upper="/var/lib/sandboxkernel/users/1001/host-3.11/upper",
    work="/var/lib/sandboxkernel/users/1001/host-3.11/work",
    volatile=False,
    id_base=0x70000000,
    cgroup="sandboxkernel/1001/0123456789ab",
    image_env={"PATH": "/opt/python/bin:/usr/bin"},
    image_labels={"org.sandboxkernel.python": "/opt/python/bin/python3"},
    hidden=(),
    disk=(254, 0),
    cores=8,
)  # fmt: skip


def payload(request: KernelCreate = REQUEST) -> Payload:
    return plan_payload(request, GROUND, socket_prefix="/run/s/k/0123/s", guest_source="pass")


def test_the_planned_spec_is_the_golden_one() -> None:
    planned = {
        "spec": to_json(plan_spec(REQUEST, GROUND)),
        "mounts": [str(op) for op in plan_mounts(plan_spec(REQUEST, GROUND))],
        "masks": [str(op) for op in plan_masks(plan_spec(REQUEST, GROUND))],
    }
    text = json.dumps(planned, indent=1) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text


def test_a_planned_spec_is_valid_and_survives_json() -> None:
    spec = plan_spec(REQUEST, GROUND)
    validate(spec)
    assert from_json(Spec, json.loads(json.dumps(to_json(spec)))) == spec


def test_the_key_is_in_the_connection_file_and_nowhere_else() -> None:
    planned = plan_payload(REQUEST, GROUND, socket_prefix="/run/s", guest_source="pass")
    assert json.loads(planned.files[CONNECTION_FILE])["key"] == "secret-key"
    assert "secret-key" not in json.dumps(
        [planned.argv, planned.env, to_json(plan_spec(REQUEST, GROUND))]
    )


def test_identity_cannot_be_overridden_by_the_request() -> None:
    request = KernelCreate(kernel_id="k", env={"HOME": "/root", "JPY_PARENT_PID": "77", "X": "y"})
    env = plan_payload(request, GROUND, socket_prefix="/s", guest_source="").env
    assert (env["HOME"], env["JPY_PARENT_PID"], env["X"]) == ("/home/sandbox", "1", "y")


def test_threads_follow_the_quota() -> None:
    env = plan_payload(REQUEST, GROUND, socket_prefix="/s", guest_source="").env
    assert env["OMP_NUM_THREADS"] == "1"


def test_a_program_of_ones_own_gets_no_connection_file() -> None:
    request = KernelCreate(kernel_id="k", argv=["true"])
    planned = plan_payload(request, GROUND, socket_prefix="", guest_source="")
    assert planned.argv == ["true"]
    assert planned.files == {}


def test_an_empty_argv_is_refused() -> None:
    with pytest.raises(RequestError):
        plan_payload(
            KernelCreate(kernel_id="k", argv=[]), GROUND, socket_prefix="", guest_source=""
        )


def test_without_a_folder_nothing_is_mounted() -> None:
    request = KernelCreate(kernel_id="k")
    assert work_folder_of(request) is None
    assert plan_spec(request, GROUND).binds == ()


def test_the_working_directory_is_the_work_folder_by_default() -> None:
    assert work_folder_of(KernelCreate(kernel_id="k", cwd="/srv/x")) == "/srv/x"


@pytest.mark.parametrize(
    ("cwd", "folder"),
    [("/a/../etc", None), ("/a//b", None), ("/a/b/", None), ("/b", "/a"), ("/ab", "/a")],
)
def test_folders_that_make_no_sense_are_refused(cwd: str, folder: str | None) -> None:
    with pytest.raises(WorkFolderError):
        work_folder_of(KernelCreate(kernel_id="k", cwd=cwd, work_folder=folder))


ENVIRONMENT = PythonEnvironment(
    python="/opt/venv/bin/python", base="/opt/python/bin/python3", folders=["/opt/venv"]
)


@pytest.mark.parametrize("folder", ["//home/ada", "//usr", "//"])
def test_two_slashes_are_no_way_round_what_is_covered_or_reserved(folder: str) -> None:
    """posixpath.normpath() keeps two: "//home/ada" is the home, and none of its prefixes match."""
    with pytest.raises(WorkFolderError):
        work_folder_of(KernelCreate(kernel_id="k", work_folder=folder))
    spec = plan_spec(KernelCreate(kernel_id="k"), GROUND)
    bind = Bind(folder, folder, Credentials(1000, 1000))
    with pytest.raises(SpecError):
        validate(dataclasses.replace(spec, binds=(bind,)))


def test_environment_is_mounted_read_only_with_the_callers_rights() -> None:
    request = msgspec.structs.replace(REQUEST, environment=ENVIRONMENT)
    ground = dataclasses.replace(GROUND, environment_roots=("/srv/own",))
    spec = plan_spec(request, ground)
    validate(spec)
    (bind,) = [bind for bind in spec.binds if bind.destination == "/opt/venv"]
    assert bind.read_only and bind.opener.uid == GROUND.subject.uid
    assert bind.allowed == ("/", "/srv/own")
    assert "/opt/venv" not in spec.writable
    assert REQUEST.work_folder in spec.writable


def test_kernel_runs_the_environments_interpreter() -> None:
    planned = payload(msgspec.structs.replace(REQUEST, environment=ENVIRONMENT))
    assert planned.argv[0] == "/opt/venv/bin/python"
    assert planned.env["PATH"] == "/opt/venv/bin:/opt/python/bin:/usr/bin"


def test_system_interpreter_has_the_images_name() -> None:
    environment = PythonEnvironment(
        python="/usr/bin/python3", base="/opt/python/bin/python3",
        folders=["/usr/lib/python3/dist-packages"],
    )  # fmt: skip
    request = msgspec.structs.replace(REQUEST, environment=environment)
    assert payload(request).argv[0] == "/opt/python/bin/python3"
    validate(plan_spec(request, GROUND))


@pytest.mark.parametrize(
    "folder", ["/usr", "/usr/lib", "/usr/lib/python3", "/usr/bin", "/etc", "/proc", "/lib/x", "/"]
)
def test_no_environment_covers_the_system(folder: str) -> None:
    environment = msgspec.structs.replace(ENVIRONMENT, folders=[folder])
    request = msgspec.structs.replace(REQUEST, environment=environment)
    with pytest.raises(SpecError, match="nothing may be mounted over"):
        validate(plan_spec(request, GROUND))


@pytest.mark.parametrize(
    ("members", "hidden", "said"),
    [
        ({"base": "/usr/bin/python3.9"}, (), "sandboxes have /opt/python/bin/python3"),
        ({"folders": ["/opt/venv/"]}, (), "normalised"),
        ({"python": "/opt/venv/../x"}, (), "normalised"),
        ({"folders": ["/home/alice/course/.venvs/a"]}, (".venvs",), "hidden entry of your home"),
        ({"folders": ["/home/alice/course"]}, (), "lies in the Python environment"),
        ({"folders": ["/home/alice"]}, (), "lies in the Python environment"),
    ],
)
def test_environment_that_would_be_another_inside_is_refused(
    members: dict[str, Any], hidden: tuple[str, ...], said: str
) -> None:
    environment = msgspec.structs.replace(ENVIRONMENT, **members)
    request = msgspec.structs.replace(REQUEST, environment=environment)
    with pytest.raises(RequestError, match=said):
        check_environment(request, GROUND.image_labels, hidden)


def test_environment_and_argv_exclude_each_other() -> None:
    request = msgspec.structs.replace(REQUEST, environment=ENVIRONMENT, argv=["true"])
    with pytest.raises(RequestError, match="exclude"):
        check_environment(request, GROUND.image_labels, ())
