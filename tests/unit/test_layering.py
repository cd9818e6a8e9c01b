"""The arrows of the architecture, read from the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STDLIB = set(sys.stdlib_module_names)

# package (longest prefix wins) -> our packages that it may import
ALLOWED = {
    "sandboxruntime": {"sandboxruntime"},
    "sandboxkernel.errors": set(),
    "sandboxkernel.paths": set(),
    "sandboxkernel.models": set(),
    "sandboxkernel.units": {"sandboxkernel.errors"},
    "sandboxkernel.images": {"sandboxkernel.images", "sandboxkernel.errors", "sandboxkernel.models",
                             "sandboxkernel.paths", "sandboxkernel"},
    "sandboxkernel.limits": {"sandboxkernel.limits", "sandboxkernel.errors", "sandboxkernel.models",
                             "sandboxkernel.units"},
    "sandboxkernel.daemon": {"sandboxkernel", "sandboxruntime"},
    "sandboxkernel.cli": {"sandboxkernel"},
    "sandboxkernel": {"sandboxkernel"},
}  # fmt: skip
FORBIDDEN = {
    "sandboxkernel.cli": {"sandboxkernel.daemon", "sandboxkernel.images", "sandboxkernel.limits"},
    "sandboxkernel.provisioner": {"sandboxkernel.daemon", "sandboxkernel.images",
                                  "sandboxkernel.limits", "sandboxkernel.cli"},
    "sandboxkernel.client": {"sandboxkernel.daemon", "sandboxkernel.cli"},
}  # fmt: skip
ONLY_IN = {
    # The guest's modules also run in images that have no other module of ours.
    "ctypes": {
        "sandboxruntime.syscalls",
        "sandboxruntime.guest.hygiene",
        "sandboxruntime.guest.immortal",
        "sandboxruntime.guest.pages",
    },
    "jupyter_client": {
        "sandboxkernel.provisioner",
        "sandboxkernel.manager_keys",
        "sandboxkernel.kernelspec",
        "sandboxruntime.guest.rehearsal",
    },
}


def modules() -> list[tuple[str, Path]]:
    found = []
    for base, package in ((ROOT, "sandboxkernel"), (ROOT / "runtime", "sandboxruntime")):
        for path in sorted((base / package).rglob("*.py")):
            name = ".".join(path.relative_to(base).with_suffix("").parts)
            found.append((name.removesuffix(".__init__"), path))
    return found


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize(("name", "path"), modules(), ids=str)
def test_imports_follow_the_arrows(name: str, path: Path) -> None:
    rule = max((key for key in ALLOWED if is_below(name, key)), key=len)
    for imported in imports(path):
        if imported.split(".")[0] in ("sandboxkernel", "sandboxruntime"):
            assert any(is_below(imported, allowed) for allowed in ALLOWED[rule]), (
                f"{name} imports {imported}"
            )
        for key, forbidden in FORBIDDEN.items():
            if is_below(name, key):
                assert not any(is_below(imported, f) for f in forbidden), f"{name}: {imported}"
        for library, owners in ONLY_IN.items():
            if is_below(imported, library):
                assert name in owners, f"{name} imports {library}"


@pytest.mark.parametrize(
    ("name", "path"),
    [m for m in modules() if m[0].startswith("sandboxruntime") and ".guest" not in m[0]],
    ids=str,
)
def test_the_runtime_is_standard_library_without_asyncio(name: str, path: Path) -> None:
    roots = {imported.split(".")[0] for imported in imports(path)}
    assert roots <= STDLIB | {"sandboxruntime"}, name
    assert "asyncio" not in roots


@pytest.mark.parametrize(("name", "path"), modules(), ids=str)
def test_modules_stay_readable(name: str, path: Path) -> None:
    limit = LONG.get(name, 450)
    assert len(path.read_text().splitlines()) <= limit


# Longer than 450 lines, with the reason.
LONG = {
    "sandboxruntime.syscalls": 520,  # one wrapper a system call: a table, not a program
    "sandboxruntime.syscall_numbers": 2000,  # the numbers of two architectures
    "sandboxkernel.daemon.routes": 520,  # one small class a row of the API
    "sandboxkernel.models": 520,  # one small class a kind of message
}


def test_importing_the_provisioner_loads_no_privileged_code() -> None:
    code = (
        "import sys, sandboxkernel.provisioner; "
        "print([m for m in sys.modules if m.startswith(('sandboxruntime', 'pyroute2', "
        "'sandboxkernel.daemon', 'sandboxkernel.images', 'click'))])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
