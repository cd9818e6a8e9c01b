"""Targets of the daemon and its clients: images, connection files, sizes, answers, commands."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec

from sandboxkernel.client import SandboxClient
from sandboxkernel.connection_file import read_connection_file
from sandboxkernel.daemon.zygote import read_ready
from sandboxkernel.errors import SandboxError
from sandboxkernel.images.digest import Digest
from sandboxkernel.images.elf import read_elf
from sandboxkernel.images.layerdiff import show_path
from sandboxkernel.images.manifest import (
    REF_NAME_ANNOTATION,
    Index,
    decode_document,
    encode_document,
)
from sandboxkernel.images.references import find_descriptor, ref_of
from sandboxkernel.images.store import ImageStore
from sandboxkernel.kernel_command import parse_command
from sandboxkernel.limits import clamp, parse_grants, parse_profiles
from sandboxkernel.limits.profiles import parse_limits
from sandboxkernel.models import KernelCreate
from sandboxkernel.units import parse_cpus, parse_size
from sandboxkernel.unixhttp import error_from_response
from tests.fuzz import documents
from tests.fuzz.runtime import as_json, read_json

AREA = Path(tempfile.mkdtemp(prefix="sandboxkernel-fuzz-"))
atexit.register(shutil.rmtree, AREA, ignore_errors=True)
DIGEST = "sha256:" + "a" * 64
DESCRIPTOR = {"mediaType": "m", "digest": DIGEST, "size": 1}
CONNECTION = {"transport": "tcp", "ip": "127.0.0.1", "key": "k", "shell_port": 1, "iopub_port": 2,
              "stdin_port": 3, "control_port": 4, "hb_port": 5}  # fmt: skip
IMAGE = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
         "config": {"Env": ["PATH=/bin"], "Labels": {"a": "b"}}}  # fmt: skip
FILE = "/run/kernel-1.json"


def _written(name: str, data: bytes) -> Path:
    path = AREA / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def connection_file(data: bytes) -> None:
    """Five ports of their own, or a refusal that names the file."""
    path = _written("connection.json", data)
    try:
        found = read_connection_file(path)
    except SandboxError as exc:
        assert str(path) in exc.message
        return
    ports = found.ports().values()
    assert len(set(ports)) == 5 and all(1 <= port <= 65535 for port in ports)


def image_documents(data: bytes) -> None:
    """Index, manifest and configuration of an image: refused, or as a second reader has them."""
    try:
        raw = documents.read(data)
    except (ValueError, RecursionError):
        raw = documents.UNREADABLE
    for kind, problem in documents.KINDS.items():
        said = problem(raw)
        try:
            found = decode_document(data, kind, "a document")
        except SandboxError:
            continue
        assert said is None, (kind, said)
        assert msgspec.convert(raw, kind) == found
        assert decode_document(encode_document(found), kind, "a document") == found
        if isinstance(found, Index):
            _names_one(found)


def _names_one(index: Index) -> None:
    """Every entry of an index is found by its name, or is told to be none."""
    for entry in index.manifests:
        assert 0 <= entry.size < 1 << 53
        try:
            found = find_descriptor(index.manifests, ref_of(entry))
        except SandboxError:
            continue  # a name that no image may have, or one that two digests begin with
        assert ref_of(entry) in (
            ref_of(found),
            found.digest,
            found.digest[7:][: len(ref_of(entry))],
        )


def image_store(data: bytes) -> None:
    """A store whose index and documents are made up: images below the store, or an error.

    The input is the configuration, and after a NUL byte what the index says of the image.
    """
    config, _, annotations = data.partition(b"\0")
    digests = []
    manifest = as_json({
        "schemaVersion": 2, "layers": [DESCRIPTOR],
        "config": {**DESCRIPTOR, "digest": f"sha256:{sha256(config).hexdigest()}"},
    })  # fmt: skip
    for blob in (config, manifest):
        digests.append(sha256(blob).hexdigest())
        _written(f"store/blobs/sha256/{digests[-1]}", blob)
    (AREA / "store" / "unpacked" / ("a" * 64)).mkdir(parents=True, exist_ok=True)
    extra = read_json(annotations)
    entry = {**DESCRIPTOR, "digest": f"sha256:{digests[1]}",
             "annotations": extra if isinstance(extra, dict) else {}}  # fmt: skip
    _written("store/index.json", as_json({"schemaVersion": 2, "manifests": [entry]}))
    try:
        for image in ImageStore(AREA / "store").list():
            assert all(AREA / "store" / "unpacked" in tree.parents for tree in image.layer_dirs)
            assert image.created_at.tzinfo is not None
            assert 0 <= image.size_bytes < 1 << 60
            assert all(str(Digest.parse(str(layer))) == str(layer) for layer in image.layers)
            assert not any("=" in name for name in image.environment)
            assert all(isinstance(text, str) for pair in image.labels.items() for text in pair)
    except SandboxError:
        pass
    finally:
        for digest in digests:
            (AREA / "store" / "blobs" / "sha256" / digest).unlink(missing_ok=True)


def elf(data: bytes) -> None:
    """Any file: nothing, or a bounded number of bounded names."""
    found = read_elf(str(_written("object", data)))
    if found is not None:
        names = (*found.needed, *found.rpath, *found.runpath)
        assert all(len(name) <= 4096 for name in names)


def sizes(data: bytes) -> None:
    """Sizes, cores and shown paths."""
    text = data.decode("utf-8", "surrogateescape")
    for parse, most in ((parse_size, 1 << 60), (parse_cpus, 4096)):
        try:
            assert 0 <= parse(text) <= most
        except SandboxError as exc:
            assert len(exc.message) < 500  # 64 characters, escaped
    assert show_path(text).replace("\\", "").isprintable() or not text.isascii()


def limits(data: bytes) -> None:
    """Profiles, grants, and wishes that never get above a maximum."""
    raw = read_json(data)
    for parse in (parse_profiles, parse_grants):
        try:
            parse(raw)
        except SandboxError:
            continue
    if not isinstance(raw, dict):
        return
    try:
        wish = parse_limits(raw, where="wish")
    except SandboxError:
        return
    most = parse_limits({"memory": "1G", "cpus": 1, "pids": 64}, where="most")
    found = clamp(wish, most, most)
    assert found.memory_bytes <= 1 << 30 and found.cpus <= 1 and found.pids <= 64


def problem(data: bytes) -> None:
    """The body of a refusal becomes an error of the product's."""
    assert isinstance(error_from_response(400, data), SandboxError)


def zygote_word(data: bytes) -> None:
    """What a zygote says of itself: fit, or a reason that a line of a log can hold."""
    unfit = read_ready(data)
    assert unfit is None or len(unfit) < 1200


CALLS: tuple[Callable[[SandboxClient], object], ...] = (
    lambda client: client.version(),
    lambda client: client.create(KernelCreate(kernel_id="k")),
    lambda client: list(client.exec("k", ["true"])),
    lambda client: list(client.prepare_image()),
    lambda client: list(client.events()),
    lambda client: list(client.stream_stats("k")),
    lambda client: list(client.logs("k")),
    lambda client: client.check(),
)


def answer(data: bytes) -> None:
    """A daemon that answers anything at all: a value, or an error of the product's.

    The last byte is also what was asked: it has no part in most answers.
    """
    _ask(CALLS[0], data)
    if number := (data[-1] if data else 0) % len(CALLS):
        _ask(CALLS[number], data)


def _ask(call: Callable[[SandboxClient], object], data: bytes) -> None:
    path = AREA / f"answer-{os.getpid()}.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        sending = threading.Thread(target=_answer_once, args=(listener, data))
        sending.start()
        try:
            call(SandboxClient(path, timeout_s=5))
        except SandboxError:
            pass
        finally:
            sending.join()


def _answer_once(listener: socket.socket, data: bytes) -> None:
    sock, _ = listener.accept()
    with sock:
        sock.recv(65536)
        try:
            sock.sendall(data)
        except OSError:
            pass  # the client has gone


def command(data: bytes) -> None:
    """A kernelspec's argv: refused, or a module and the words that were there."""
    argv = data.decode("utf-8", "surrogateescape").split("\0")
    try:
        found = parse_command(argv, FILE)
    except SandboxError:
        return
    rest = found.options + found.arguments if hasattr(found, "options") else found.arguments
    assert set(rest) <= set(argv)


TARGETS = {
    connection_file: [as_json(CONNECTION)],
    image_documents: [as_json(IMAGE), as_json({"schemaVersion": 2, "manifests": [
                          {**DESCRIPTOR, "annotations": {REF_NAME_ANNOTATION: "host"}}]}),
                      as_json({"schemaVersion": 2, "config": DESCRIPTOR, "layers": [DESCRIPTOR]})],
    image_store: [as_json(IMAGE) + b"\0" + json.dumps(
        {"org.opencontainers.image.ref.name": "host",
         "org.sandboxkernel.stored-at": "2026-01-01T00:00:00+00:00"}).encode()],
    elf: [Path("/bin/true").read_bytes()[:4096] if Path("/bin/true").exists() else b"\x7fELF"],
    sizes: [b"512M", b"1.5GiB", b"0.5"],
    limits: [b'{"memory": "1G", "cpus": 0.5, "io_read": 4096}', b'{"a": {"limits": {"pids": 9}}}',
             b'[{"user": "ada", "max_kernels": 3, "ceiling": {"memory": "3G"}}]'],
    zygote_word: [b'{"ready": 512}', b'{"unfit": "ImportError: x"}'],
    problem: [as_json({"code": "kernel_not_found", "detail": "x", "hint": "y", "status": 404})],
    answer: [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
             b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
             *(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n%c"
               % (len(line), line, number) for line, number in (
                   (b'{"exit_code":0}\n', 2), (b'{"stream":"stdout","data":"x"}\n', 2),
                   (b'{"phase":"x"}\n', 3), (b'{"error": {"code": "conflict"}}\n', 4)))],
    command: [f"python3\0-Xfrozen_modules=off\0-m\0ipykernel_launcher\0-f\0{FILE}".encode(),
              f"sandboxkernel\0launch\0--profile=x\0-f\0{FILE}".encode()],
}  # fmt: skip
