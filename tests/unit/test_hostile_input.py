"""What anybody may send or write, made up: a value, or an error of the product's, and nothing else."""

from __future__ import annotations

import json
import socket
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxkernel import models, units
from sandboxkernel.daemon.zygote import read_ready
from sandboxkernel.errors import RequestError, SandboxError
from sandboxkernel.limits import check_wish, clamp, parse_grants, parse_profiles
from sandboxkernel.limits.profiles import Profile
from sandboxkernel.models import KernelCreate, Limits
from sandboxruntime.channel import recv_message
from sandboxruntime.errors import ContainerError
from sandboxruntime.spec import from_json, to_json

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
REQUESTS = [
    models.KernelCreate, models.KernelRestart, models.ExecRequest, models.SignalRequest,
    models.ImagePrepare,
]  # fmt: skip
MEMBERS = st.sampled_from(sorted(set(Profile.__dataclass_fields__) - {"name"}))
GRANTS = st.sampled_from(["user", "group", "profiles", "max_kernels", "ceiling"])
HUGE = 10**5000


@given(st.one_of(JSON, st.dictionaries(st.text(max_size=3), st.dictionaries(MEMBERS, JSON))))
@example({"a": {"limits": {"cpus": HUGE}}})
@example({"a": {"limits": {"memory": HUGE}}})
@example({"a": {"limits": {"memory": 1.5}}})
@example({1: {}})
@example({"a": {"mounts": "/srv"}})
@example({"a": {"mounts": [{"source": "/srv", "read_only": ""}]}})
@example({"a": {"ephemeral": "no"}})
@example({"a": {"preload": "numpy"}})
def test_profiles_are_read_or_refused(raw: Any) -> None:
    try:
        profiles = parse_profiles(raw)
    except RequestError as exc:
        assert "profiles" in exc.message or "profile name" in exc.message
        return
    for name, profile in profiles.items():
        assert isinstance(profile.ephemeral, bool) and profile.name == name
        assert all(mount.read_only in (True, False) for mount in profile.mounts)


@given(st.one_of(JSON, st.lists(st.dictionaries(GRANTS, JSON), max_size=2)))
@example([{"user": 1001}])
@example([{"user": "ada", "profiles": "default"}])
@example([{"user": "ada", "profiles": [["default"]]}])
def test_grants_are_read_or_refused(raw: Any) -> None:
    try:
        for grant in parse_grants(raw):
            assert isinstance(grant.user or grant.group, str)
    except RequestError as exc:
        assert "grants" in exc.message


def test_words_are_not_taken_for_lists_nor_for_yes() -> None:
    for bad in (
        {"work_folders": "/"}, {"preload": "x"}, {"mounts": [{"source": "/a", "read_only": "no"}]},
        {"ephemeral": "no"}, {"env": {"A": []}}, {"image": 7},
    ):  # fmt: skip
        with pytest.raises(RequestError):
            parse_profiles({"a": bad})


@pytest.mark.parametrize("model", REQUESTS, ids=lambda model: model.__name__)
@given(data=st.data())
def test_requests_are_read_or_refused(model: type, data: st.DataObject) -> None:
    names = st.sampled_from([*model.__struct_fields__, "unknown"])  # type: ignore[attr-defined]
    raw = data.draw(st.dictionaries(names, JSON, max_size=4))
    try:
        value = msgspec.json.decode(json.dumps(raw), type=model)
    except msgspec.MsgspecError:
        return
    assert "unknown" not in raw
    assert msgspec.json.decode(msgspec.json.encode(value), type=model) == value


@given(st.binary(max_size=200))
def test_bytes_are_no_request(data: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        msgspec.json.decode(data, type=KernelCreate)


@given(st.text(alphabet=st.characters(categories=["Cs", "Cc", "Ll"]), max_size=20))
def test_paths_are_absolute_and_free_of_nul(text: str) -> None:
    raw = json.dumps({"kernel_id": "x", "work_folder": "/" + text, "cwd": text or "/"})
    try:
        request = msgspec.json.decode(raw, type=KernelCreate)
    except msgspec.MsgspecError:
        return
    assert request.cwd is not None and request.cwd.startswith("/")
    assert request.work_folder is not None and "\0" not in request.work_folder
    request.work_folder.encode()  # no surrogate gets in


NUMBERS = st.one_of(st.none(), st.integers(), st.floats(), st.just(2**63))
LIMITS = st.builds(
    Limits, memory_bytes=NUMBERS, swap_bytes=NUMBERS, cpus=NUMBERS, cpu_weight=NUMBERS,
    pids=NUMBERS, shm_bytes=NUMBERS, tmp_bytes=NUMBERS,
)  # fmt: skip


@given(LIMITS, LIMITS, LIMITS)
@example(Limits(memory_bytes=10**4000), Limits(), Limits())
@example(Limits(cpus=HUGE), Limits(), Limits())
def test_no_wish_gets_above_the_maximum(wish: Limits, default: Limits, maximum: Limits) -> None:
    try:
        for limits in (wish, default, maximum):
            check_wish(limits)
    except RequestError:
        return
    inforce = clamp(wish, default, maximum)
    for name in Limits.__struct_fields__:
        most, value = getattr(maximum, name), getattr(inforce, name)
        if name != "io" and most is not None:
            assert value <= most


@given(st.one_of(st.text(), st.integers(), st.floats(), st.binary()))
@example("9" * 63)
@example(HUGE)
def test_sizes_are_read_or_refused(text: Any) -> None:
    try:
        assert units.parse_size(text) >= 0
    except SandboxError as exc:
        assert len(exc.message) < 200


@given(st.one_of(JSON, st.binary(max_size=50)))
def test_messages_to_the_launcher_are_objects_or_refused(raw: Any) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send((raw if isinstance(raw, bytes) else json.dumps(raw).encode()) or b" ")
        try:
            message, fds = recv_message(theirs)
        except (ValueError, RecursionError):
            return
        assert isinstance(message, dict) and fds == []


@given(st.dictionaries(st.sampled_from(["container_id", "rootfs", "process", "binds"]), JSON))
def test_specs_are_read_or_refused(raw: dict[str, Any]) -> None:
    try:
        spec = from_json(raw)
    except (ContainerError, TypeError, KeyError, ValueError, AttributeError):
        return
    assert to_json(spec)


WORDS = st.one_of(
    st.binary(max_size=40),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(["ready", "unfit"]), JSON).map(
        lambda v: json.dumps(v).encode()
    ),
)


@given(WORDS)
@example(b"5")
@example(b"[" * 100_000)
@example(b'{"unfit": 5}')
@example(b'{"ready": true}')
def test_whatever_a_zygote_says_makes_it_fit_or_not(word: bytes) -> None:
    unfit = read_ready(word)
    if unfit is None:
        found = json.loads(word)
        assert type(found["ready"]) is int and found.get("unfit") is None
    else:
        assert 0 < len(unfit) < 1200 or json.loads(word)["unfit"] == ""
