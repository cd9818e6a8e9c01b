"""One target under libFuzzer, in a process of its own: `python -m tests.fuzz.one TARGET [-OPTION=...]`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(
    include=["sandboxkernel", "sandboxruntime", "tests.fuzz.documents"]
):
    from tests.fuzz import outside, product, runtime


def main() -> None:
    name = sys.argv.pop(1)
    targets = {f.__name__: f for f in (*runtime.TARGETS, *outside.TARGETS, *product.TARGETS)}
    target = targets[name]
    atheris.Setup(sys.argv, target, enable_python_coverage=True)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
