"""The error tree: codes are unique, and problem documents bring the exception back."""

from __future__ import annotations

import errno
import os

import pytest

from sandboxkernel import errors
from sandboxkernel.daemon.problems import told_if_ended
from sandboxkernel.errors import ERRORS_BY_CODE, KernelNotRunning, SandboxError, error_from_problem

CLASSES = [
    value for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, SandboxError)
]  # fmt: skip


def test_codes_are_unique() -> None:
    assert len({error.code for error in CLASSES}) == len(CLASSES) == len(ERRORS_BY_CODE)


@pytest.mark.parametrize("error_type", CLASSES, ids=lambda error: error.code)
def test_a_problem_document_brings_the_exception_back(error_type: type[SandboxError]) -> None:
    facts = {name: 7 if "s" in name[-2:] or name == "errno" else name for name in error_type.facts}
    error = error_type("it failed: why", hint="Mend it.", **facts)
    problem = error.to_problem()
    assert problem["status"] == error.status and problem["code"] == error.code
    back = error_from_problem(problem)
    assert type(back) is error_type and str(back) == "it failed: why. Mend it."
    assert {name: getattr(back, name) for name in facts} == facts


def test_a_code_of_a_newer_daemon_gives_the_base() -> None:
    error = error_from_problem({"code": "not_yet_invented", "title": "New", "status": 418})
    assert type(error) is SandboxError and error.message == "New"


def test_a_document_that_says_nothing_still_gives_an_error() -> None:
    assert str(error_from_problem({})) == "unknown error"


def test_a_fact_that_the_error_does_not_have_is_a_defect_of_the_caller() -> None:
    with pytest.raises(TypeError, match="no facts"):
        SandboxError("x", step="mounts")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
def test_a_cgroup_that_goes_while_it_is_used_is_a_kernel_that_has_ended(number: int) -> None:
    with pytest.raises(KernelNotRunning), told_if_ended("k"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError), told_if_ended("k"):
        raise PermissionError(errno.EACCES, "no")
