"""The documentation names what exists, and all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandboxkernel.cli import COMMANDS
from sandboxkernel.daemon.app import SandboxKernelDaemon
from sandboxkernel.daemon.openapi import document
from sandboxkernel.errors import ERRORS_BY_CODE
from sandboxkernel.limits import Profile
from sandboxkernel.limits.profiles import _IO, _NUMBERS, _SIZES
from sandboxkernel.provisioner import SandboxProvisioner
from sandboxruntime.steps import BUNDLE_STEPS, Step

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def page(name: str) -> str:
    return (ROOT / name).read_text()


def own_traits(configurable: type) -> set[str]:
    inherited = set().union(
        *(base.class_trait_names(config=True) for base in configurable.__mro__[1:]
          if hasattr(base, "class_trait_names"))
    )  # fmt: skip
    return set(configurable.class_trait_names(config=True)) - inherited


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_error_code_is_documented() -> None:
    documented = re.findall(r"^\| `(\w+)` \| (\d{3}) \| `(\w+)` \|", page("docs/errors.md"), re.M)
    actual = {(e.code, str(e.status), e.__name__) for e in ERRORS_BY_CODE.values()}
    assert set(documented) == actual


def test_every_setting_is_documented() -> None:
    text = page("docs/configuration.md")
    named = set(re.findall(r"`(\w+)`", text))
    for configurable in (SandboxKernelDaemon, SandboxProvisioner):
        assert own_traits(configurable) <= named
    assert set(Profile.__dataclass_fields__) - {"name"} <= named
    assert {*_SIZES, *_NUMBERS, *_IO} <= named


def test_every_step_is_documented_in_its_order() -> None:
    documented = re.findall(r"^\| `(\w+)` \| (?:launcher|container|daemon) \|",
                            page("docs/architecture.md"), re.M)  # fmt: skip
    assert documented == [step.value for step in Step if step not in BUNDLE_STEPS]


def test_every_route_is_documented() -> None:
    text = page("docs/architecture.md")
    for path in document()["paths"]:
        last = [part for part in path.split("/") if part and not part.startswith("{")][-1]
        assert last in text, path


def test_every_test_that_a_promise_names_exists() -> None:
    sources = "".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page("docs/security.md")))
    assert len(named) > 30
    missing = {name for name in named if f"def {name}(" not in sources}
    assert not missing


def test_the_command_lines_of_the_readme_exist() -> None:
    known = {name for section in COMMANDS.values() for name in section}
    text = page("README.md")
    used = set(re.findall(r"^[$#] (?:sudo )?sandboxkernel (\w+)", text, re.M))
    used |= set(re.findall(r"^sandboxkernel (\w+)", text, re.M))
    assert used and used <= known


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.M))
    for path in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", path.read_text(), re.M))
        assert {a or b for a, b in named} <= targets, path.name
