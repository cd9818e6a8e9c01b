"""Linux's own verdicts on the filters that we load, for every number of every table."""

from __future__ import annotations

import collections
import platform

import pytest

from sandboxruntime.seccomp import compile_filter, load_profile
from tests.third_party.verdicts import Query, edges, in_linux, in_our_simulator, whole_tables

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 only")


@pytest.mark.parametrize("name", ["notebook", "zygote"])
def test_linux_judges_as_the_simulator_says(name: str) -> None:
    profile = load_profile(name)
    program = compile_filter(profile, "x86_64")
    queries = [*whole_tables(), *edges(profile)]
    said = dict(zip(queries, in_linux(program, queries), strict=True))
    expected = dict(zip(queries, in_our_simulator(program, queries), strict=True))
    assert {
        each: (said[each], expected[each]) for each in queries if said[each] != expected[each]
    } == {}
    assert {answer for each, answer in said.items() if each.abi == "i386"} == {"kill"}
    assert {answer for each, answer in said.items() if each.abi == "x32"} == {"ENOSYS"}


def test_a_filter_that_says_something_else_is_told_apart() -> None:
    """The control: without it, a reading that always says the same would pass, too."""
    table = [each for each in whole_tables() if each.abi == "x86_64"]
    said = {
        name: in_linux(compile_filter(load_profile(name), "x86_64"), table)
        for name in ("notebook", "zygote")
    }
    assert said["notebook"] != said["zygote"]
    assert len(collections.Counter(said["notebook"])) > 3
    assert in_linux(compile_filter(load_profile(), "x86_64"), [Query("x86_64", 165)]) == ["EPERM"]
