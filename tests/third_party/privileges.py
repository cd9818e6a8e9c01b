"""captest, capsh and setpriv in a cell's subprocess, on every start path; and a control.

The control is a container that keeps its capabilities, in its user namespace, and has no filter,
no Landlock and no NoNewPrivs: each tool must say something else of it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Final

from sandboxkernel.images.store import StoredImage
from tests.audit.peers import on_every_path
from tests.escape.attacks.model import PRIVILEGED
from tests.harness import Harness, harness, make_spec
from tests.third_party.tools import Result, image_with, package, say, with_image

__all__ = [
    "PROGRAMS",
    "control",
    "inside",
    "judge",
    "measure",
    "not_differing",
    "readings",
]

PROGRAMS = ("captest", "capsh", "setpriv")
COMMANDS: Final[Mapping[str, str]] = {
    "captest": "captest --text", "capsh": "/usr/sbin/capsh --print", "setpriv": "setpriv --dump",
}  # fmt: skip
EXPECTED: Final[Mapping[str, str]] = {
    "captest: Current capabilities": "none",
    "captest: securebits flags": "NOROOT, NOROOT_LOCKED, NO_SETUID_FIXUP, NO_SETUID_FIXUP_LOCKED",
    "captest: direct access to shadow": "FAILED (Permission denied)",
    "captest: access shadow by child process": "FAILED",
    "capsh: Current": "=",
    "capsh: Bounding set": "",
    "capsh: Ambient set": "",
    "capsh: Securebits": "0357/0xef/8'b11101111 (no-new-privs=1)",
    "capsh: Guessed mode": "NOPRIV (1)",
    "setpriv: no_new_privs": "1",
    "setpriv: Inheritable capabilities": "[none]",
    "setpriv: Ambient capabilities": "[none]",
    "setpriv: Capability bounding set": "[none]",
    "setpriv: Supplementary groups": "[none]",
    # 0xc0 is no_cap_ambient_raise with its lock, which setpriv has no word for.
    "setpriv: Securebits": "noroot,noroot_locked,no_setuid_fixup,no_setuid_fixup_locked,"
    "keep_caps_locked,0xc0",
}
# OCI has no word for securebits: docs/security.md, "Beside other sandboxes".
BY_RUNC: Final[Mapping[str, str]] = {
    "captest: securebits flags": "none",
    "capsh: Securebits": "00/0x0/1'b0 (no-new-privs=1)",
    "capsh: Guessed mode": "HYBRID (4)",
    "setpriv: Securebits": "[none]",
}
SAME_IN_CONTROL = {
    "setpriv: Supplementary groups",
    # access(2), which judges by the real uid and its capabilities: another uid than 0 has none.
    "captest: direct access to shadow",
}
CELL = """
import json, subprocess
print(json.dumps({{
    name: subprocess.run(command, shell=True, capture_output=True, text=True).stdout
    for name, command in {commands!r}.items()
}}))
"""
_ATTEMPT = re.compile(r"Attempting (?:to )?(.*?)\.\.\.(.*)")


def readings(outputs: Mapping[str, str]) -> dict[str, str]:
    """What the tools say, by tool and name. Pure."""
    found = {}
    for tool, text in outputs.items():
        for line in text.splitlines():
            attempt = _ATTEMPT.fullmatch(line)
            name, separator, value = line.strip().partition("=" if " set =" in line else ":")
            if attempt:
                found[f"{tool}: {attempt[1]}"] = attempt[2]
            elif separator:
                found[f"{tool}: {name.strip()}"] = value.strip()
    return found


def judge(path: str, found: Mapping[str, str]) -> list[str]:
    """What is not as it should be on a start path. Pure."""
    wanted = {**EXPECTED, **(BY_RUNC if path == "runc" else {})}
    return [
        f"{path}: {name} is {found.get(name, 'not said')!r}, not {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]


def inside(launcher: Harness, image: StoredImage) -> dict[str, str]:
    """The readings in a container that a launcher makes."""
    script = "\n".join(f"echo '#{name}'; {command}" for name, command in COMMANDS.items())
    with make_spec() as given:
        lower = tuple(str(path) for path in image.layer_dirs)
        spec = dataclasses.replace(given, rootfs=dataclasses.replace(given.rootfs, lower=lower))
        with launcher.container(spec) as attempt:
            _, text = attempt.run("sh", "-c", script)
    parts = re.split(r"^#(\w+)\n", text, flags=re.M)
    return readings(dict(zip(parts[1::2], parts[2::2], strict=True)))


def control(image: StoredImage) -> dict[str, str]:
    """The same in a container that has privileges."""
    with harness(PRIVILEGED.steps, keep_capabilities=True) as launcher:
        return inside(launcher, image)


def not_differing(lacking: Mapping[str, str]) -> list[str]:
    """What a control says as if it were confined: nothing, or the reading proves nothing. Pure."""
    return [
        name for name, value in EXPECTED.items()
        if lacking.get(name) == value and name not in SAME_IN_CONTROL
    ]  # fmt: skip


def measure() -> list[Result]:
    """A table of all three."""
    found: dict[str, dict[str, str]] = {}
    with image_with(*PROGRAMS) as image:
        for path, kernel, _ in on_every_path(with_image(image)):
            say(f"captest, capsh, setpriv: {path}")
            cell = CELL.format(commands=dict(COMMANDS))
            found[path] = readings(json.loads(kernel.run(cell).text))
        lacking = control(image)
    result = Result(
        "captest, capsh, setpriv",
        package("libcap-ng-utils", "libcap2-bin", "util-linux"),
        f"{', '.join(COMMANDS.values())} in a subprocess of a cell, on every start path; the control "
        "keeps its capabilities and has no filter, no Landlock and no NoNewPrivs",
        ("reading", *found, "control"),
        details={"paths": found, "control": lacking},
    )
    for path, said in found.items():
        result.problems += judge(path, said)
    for name in EXPECTED:
        values = [each.get(name, "not said") for each in (*found.values(), lacking)]
        result.rows.append([name, *(_short(value) for value in values)])
    result.problems += [f"the control does not differ: {name}" for name in not_differing(lacking)]
    result.notes.append(
        "Containers that runc makes have no locked securebits, as OCI has no word for them: with an "
        "empty bounding set and NoNewPrivs they give nothing. captest's file is one that only root "
        "may read, made for this."
    )
    return [result]


def _short(value: str) -> str:
    """Long lists of capabilities by their number."""
    names = value.removeprefix("=").split(",")
    return f"{len(names)} capabilities" if len(names) > 8 else value or "empty"
