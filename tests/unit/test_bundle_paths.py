"""Paths of a config.json mean one thing, however many slashes they begin with."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxruntime.bundles.config import parse_config


def config(**linux: Any) -> dict[str, Any]:
    return {
        "ociVersion": "1.2.0", "root": {"path": "r"}, "process": {"args": ["sh"], "cwd": "//tmp"},
        "mounts": [{"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]},
                   {"destination": "proc", "type": "proc"}],
        "linux": {"namespaces": [{"type": "mount"}], **linux},
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/dev/null", "//dev/null", "///dev/./null"])
def test_paths_begin_with_one_slash(path: str) -> None:
    found = parse_config(
        config(devices=[{"path": path, "type": "c"}], maskedPaths=[path], readonlyPaths=[path])
    )
    assert [mount.destination for mount in found.mounts] == ["/dev", "/proc"]
    assert found.devices[0].path == found.masked_paths[0] == "/dev/null"
    assert found.read_only_paths == ("/dev/null",)
    assert found.process.cwd == "/tmp"


def test_shares_of_any_size_are_a_weight() -> None:
    for shares, weight in ((2, 1), (1024, 100), (262144, 10_000), (10**400, 10_000)):
        assert (
            parse_config(config(resources={"cpu": {"shares": shares}})).limits.cpu_weight == weight
        )
