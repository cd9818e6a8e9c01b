"""The filter that we load, judged by libseccomp's simulator, libpcap and Linux; and a sandbox.

scmp_bpf_sim is in no Debian package: it is built from the source of Debian's libseccomp. It has no
BPF_JSET ("jump if a bit is set") and says FAULT where it meets one: those calls are the others'.
"""

from __future__ import annotations

import collections
import csv
import errno
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandboxruntime.seccomp import compile_filter, load_profile
from sandboxruntime.steps import Step
from sandboxruntime.syscall_numbers import NUMBERS
from tests.audit.peers import PROBE
from tests.harness import harness, make_spec
from tests.third_party.tools import Result, package, say
from tests.third_party.verdicts import (
    LAST_NUMBER,
    UNFILTERED,
    X32_BIT,
    Query,
    edges,
    in_libpcap,
    in_linux,
    in_our_simulator,
    whole_tables,
)

__all__ = ["measure"]

ROOT = Path(__file__).resolve().parents[2]
FAULT = "no answer"
POINTER = 0x7F0000000000  # what an address is to a filter
# What the audit's probe does, for the tables alone; in x32's and i386's, every number.
TABLES = f"""
import json, os, struct, sys
probe = {{"__name__": "probe"}}
exec({PROBE!r}, probe)
probe["refuse"]()
call, forked, code = probe["call"], probe["forked"], probe["machine_code"]
def int80(number):  # with -1 in ebx, ecx, edx, esi, edi and ebp
    load = b"".join(opcode + b"\\xff" * 4 for opcode in (b"\\xbb", b"\\xb9", b"\\xba", b"\\xbe", b"\\xbf", b"\\xbd"))
    number = b"\\xb8" + struct.pack("<I", number)
    probe["checked"](code(b"\\x53\\x55" + load + number + b"\\xcd\\x80\\x5d\\x5b\\xc3")())
print(json.dumps({{
    "x86_64": probe["syscalls"](),
    "x32": {{n: forked(lambda n=n: call({X32_BIT} | n)) for n in range({LAST_NUMBER + 1})}},
    "i386": {{n: forked(lambda n=n: int80(n)) for n in range({LAST_NUMBER + 1})}},
    "arguments": {{
        n: [a if isinstance(a, int) else {POINTER} for a in probe["ARGUMENTS"].get(n, (-1,) * 6)]
        for n in range(probe["LAST_SYSCALL"] + 1)
    }},
}}))
"""


def measure() -> list[Result]:
    """A table of the programs that judge, and one of a sandbox."""
    profile = load_profile()
    program = compile_filter(profile, "x86_64")
    queries = [*whole_tables(), *edges(profile)]
    with tempfile.TemporaryDirectory(prefix="sk-third-") as work:
        Path(work).chmod(0o755)  # apt downloads as a user of its own
        source = _source(Path(work))
        say(f"seccomp: {len(queries)} questions")
        said = {
            "scmp_bpf_sim": in_scmp_bpf_sim(source, program, queries),
            "libpcap": in_libpcap(program, queries),
            "our simulator": in_our_simulator(program, queries),
        }
        judged = _judged(queries, in_linux(program, queries), said)
        judged.problems += _differing_numbers(source)
    return [judged, _sandbox(program)]


def _source(work: Path) -> Path:
    """libseccomp's, with its simulator built."""
    subprocess.run(["sh", str(ROOT / "tools" / "apt-source.sh"), "libseccomp", work], check=True)
    tools = work / "source" / "tools"
    subprocess.run(
        ["gcc", "-O2", "-I../include", "-o", "sim", "scmp_bpf_sim.c", "util.c"],
        cwd=tools, check=True,
    )  # fmt: skip
    return work / "source"


def in_scmp_bpf_sim(source: Path, program: bytes, queries: Sequence[Query]) -> list[str]:
    """By libseccomp's simulator, one process for each question."""
    tools = source / "tools"
    (tools / "program").write_bytes(program)
    architectures = {"x86_64": "x86_64", "x32": "x32", "i386": "x86"}
    lines = []
    for each in queries:
        number, *args = each.words()
        given = " ".join(f"-{index} {value}" for index, value in enumerate(args))
        lines.append(f"./sim -f program -a {architectures[each.abi]} -s {number} {given} 2>&1")
    script = "\n".join(lines)
    shown = subprocess.run(["sh"], input=script, cwd=tools, capture_output=True, text=True)
    words = {"ALLOW": "allow", "KILL_PROCESS": "kill", "FAULT": FAULT}
    return [words.get(line) or _error_name(line) for line in shown.stdout.splitlines()]


def _error_name(line: str) -> str:
    """ERRNO(1) is EPERM."""
    match = re.fullmatch(r"ERRNO\((\d+)\)", line)
    return errno.errorcode[int(match[1])] if match else line


def _judged(
    queries: Sequence[Query], linux: Sequence[str], said: Mapping[str, Sequence[str]]
) -> Result:
    result = Result(
        "scmp_bpf_sim, libpcap: the system call filter",
        package("libseccomp2", "libpcap0.8") + ", scmp_bpf_sim from the source of libseccomp2",
        "The filter of notebooks, asked of every number up to 1023 of x86-64's, x32's and i386's "
        "tables, and at and beside every value that a rule looks for; Linux answers without making "
        "the call",
        ("questions", "number", "Linux: allowed", "refused", "killed",
         *(f"{name}: same" for name in said)),
    )  # fmt: skip
    if any(len(answers) != len(queries) for answers in said.values()):
        result.problems.append("not every question was answered")
        return result
    for name, rows in _groups(queries).items():
        kinds = collections.Counter(
            linux[row] if linux[row] in ("allow", "kill") else "refuse" for row in rows
        )
        cells = [str(kinds[kind]) for kind in ("allow", "refuse", "kill")]
        for judge, answers in said.items():
            same = sum(answers[row] == linux[row] for row in rows)
            faults = sum(answers[row] == FAULT for row in rows)
            cells.append(f"{same}, no answer to {faults}" if faults else str(same))
            result.problems += [
                f"{judge} says {answers[row]} of {queries[row]}, Linux {linux[row]}"
                for row in rows
                if answers[row] not in (linux[row], FAULT)
            ]
        result.rows.append([name, str(len(rows)), *cells])
    names = {number: name for name, number in NUMBERS["x86_64"].items()}
    silent = {names[each.number] for each, answer in zip(queries, said["scmp_bpf_sim"], strict=True)
              if answer == FAULT}  # fmt: skip
    result.notes.append(
        f"scmp_bpf_sim does not know BPF_JSET, so it has no answer to {', '.join(sorted(silent))}, "
        "whose rules look for bits. Linux shows uretprobe (335) and uprobe (336) to no filter of "
        "anybody's, so they are not asked here. libseccomp's list of "
        "numbers for x86-64 and arm64 agrees with ours."
    )
    return result


def _groups(queries: Sequence[Query]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, each in enumerate(queries):
        name = "arguments" if each.args else f"table of {each.abi}"
        found.setdefault(name, []).append(index)
    return found


def _differing_numbers(source: Path) -> Iterator[str]:
    """Names that libseccomp gives another number than we do."""
    with (source / "src" / "syscalls.csv").open() as stream:
        for row in csv.DictReader(stream):
            name = next(iter(row.values()))
            for ours, theirs in (("x86_64", "x86_64"), ("aarch64", "aarch64")):
                number = NUMBERS[ours].get(name)
                if number is not None and row[theirs] != str(number):
                    yield f"{name} of {ours} is {number}, in libseccomp {row[theirs]}"
                if number is None and row[theirs].isdigit():
                    yield f"{name} of {ours} is missing, in libseccomp {row[theirs]}"


def _sandbox(program: bytes) -> Result:
    """Every number in a cold sandbox, and in one without the filter."""
    say("seccomp: every number in a sandbox")
    confined, lacking = (_tables(dropped) for dropped in ((), (Step.SECCOMP,)))
    result = Result(
        "The same in a sandbox",
        "The audit's probe",
        "It makes every call of the x86-64 table with arguments of no use, and every number of the "
        "two others, in a container of ours; the control has no filter",
        ("table", "calls", "the filter refuses", "refused so", "the filter allows",
         "Linux refuses all the same", "control: refused so"),
    )  # fmt: skip
    names = {number: name for name, number in NUMBERS["x86_64"].items()}
    for abi in ("x86_64", "x32", "i386"):
        queries = list(_queries(abi, confined["arguments"]))
        seen = {each: confined[abi][str(each.number & ~X32_BIT)] for each in queries}
        other = {each: lacking[abi][str(each.number & ~X32_BIT)] for each in queries}
        wanted = dict(zip(queries, in_linux(program, queries), strict=True))
        refused = {each: "SIGSYS" if said == "kill" else said
                   for each, said in wanted.items() if said != "allow"}  # fmt: skip
        same = sum(seen[each] == said for each, said in refused.items())
        bare = sum(other[each] == said for each, said in refused.items())
        allowed = [each for each, said in wanted.items() if said == "allow"]
        by_linux = [each for each in allowed if seen[each] in ("ENOSYS", "EPERM", "SIGSYS")]
        result.rows.append([abi, *map(str, (len(queries), len(refused), same, len(allowed),
                                            len(by_linux), bare))])  # fmt: skip
        result.problems += [
            f"{each} is {said} to the filter, and {seen[each]} in the sandbox"
            for each, said in refused.items() if seen[each] != said
        ]  # fmt: skip
        if abi == "x32" and bare == len(refused):
            result.notes.append(
                "This Linux is built without x32, so the control cannot differ there."
            )
        elif bare == len(refused):
            result.problems.append(f"{abi}: the control refuses as much without the filter")
        if by_linux:
            told = ", ".join(f"{names[each.number]} {seen[each]}" for each in by_linux)
            result.notes.append(f"Refused by Linux itself, though the filter lets it pass: {told}.")
    probes = ", ".join(
        f"{number} {confined['x86_64'][str(number)]}" for number in sorted(UNFILTERED)
    )
    result.notes.append(
        f"What Linux shows to no filter answers {probes}: it works from Linux's own probes alone, "
        "and ends or refuses every other caller."
    )
    result.details = {
        place: {names.get(int(n), n): said for n, said in found["x86_64"].items()}
        for place, found in (("sandbox", confined), ("control", lacking))
    }
    return result


def _queries(abi: str, arguments: Mapping[str, Sequence[int]]) -> Iterator[Query]:
    if abi == "x86_64":
        for name, args in arguments.items():
            if int(name) not in UNFILTERED:
                yield Query(abi, int(name), tuple(args))
        return
    for number in range(LAST_NUMBER + 1):
        yield Query(abi, number | X32_BIT if abi == "x32" else number)


def _tables(dropped: Sequence[Step]) -> dict[str, Any]:
    with harness(dropped) as launcher, make_spec() as spec, launcher.container(spec) as attempt:
        status, text = attempt.run(
            "python3", "-c", TABLES, env={"AUDIT_HOST_PIDNS": _pid_namespace()}
        )
    if status:
        raise RuntimeError(f"the probe ended with {status}: {text[-500:]}")
    found: dict[str, Any] = json.loads(text)
    return found


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())
