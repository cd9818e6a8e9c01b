"""Build the Debian package: `make deb`. Needs Debian 12's Python, and pip for its parts.

The programs are a virtual environment of Debian's Python in /usr/lib/sandboxkernel, with every
library that they need: Debian 12 has too old a jupyter_client and ipykernel, and no msgspec. The
environments that people's Jupyter servers run in get the wheel in /usr/share/sandboxkernel.
"""

from __future__ import annotations

import argparse
import compileall
import gzip
import hashlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

PREFIX = "usr/lib/sandboxkernel"
PYTHON = "/usr/bin/python3"
PROGRAMS = {
    "sandboxkernel": "usr/bin",
    "sandboxkerneld": "usr/sbin",
    "sandboxruntime": "usr/sbin",
}
COMPLETIONS = {
    "bash": "bash-completion/completions/sandboxkernel",
    "zsh": "zsh/vendor-completions/_sandboxkernel",
    "fish": "fish/vendor_completions.d/sandboxkernel.fish",
}
CONTROL = """\
Package: sandboxkernel
Version: {version}
Architecture: {architecture}
Maintainer: The sandboxkernel project <maintainers@example.org>
Installed-Size: {size}
Depends: python3 (>= {python}), python3 (<< {python_next}), libc6 (>= 2.28), init-system-helpers
Suggests: runc
Section: science
Priority: optional
Description: Jupyter kernels that each run in their own Linux container
 A root daemon gives every notebook kernel a container of its own: private namespaces, caps on
 memory, CPU, processes and disk traffic, a read-only system and a layer of its user's own.
 Includes the command line, systemd units, and the wheel for the environments of Jupyter servers.
"""


def main() -> None:
    """Build into --output; prints the package's path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--output", type=Path, default=Path("build"))
    parser.add_argument("--revision", default="1", help="the Debian revision")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sandboxkernel-deb-") as scratch:
        print(build(options.source.resolve(), options.output, options.revision, Path(scratch)))


def build(source: Path, output: Path, revision: str, scratch: Path) -> Path:
    """The package of a source tree. Raises CalledProcessError with the program that failed."""
    tree = scratch / "tree"
    wheel = _wheel(source, scratch)
    _environment(tree, wheel)
    for name, directory in PROGRAMS.items():
        (tree / directory).mkdir(parents=True, exist_ok=True)
        (tree / directory / name).symlink_to(f"/{PREFIX}/bin/{name}")
    _files(tree, source, wheel)
    version = f"{_project_version(source)}-{revision}"
    architecture = _run("dpkg", "--print-architecture").strip()
    _control(tree, source, version, architecture)
    package = output / f"sandboxkernel_{version}_{architecture}.deb"
    _run("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", str(tree), str(package))
    return package


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit(f"{argv[0]} ended with {done.returncode}")
    return done.stdout


def _project_version(source: Path) -> str:
    """As Debian compares: 0.1.0.dev0 comes before 0.1.0."""
    version: str = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
    return version.replace(".dev", "~dev")


def _wheel(source: Path, scratch: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "wheel", "--no-deps", f"--wheel-dir={scratch / 'wheel'}", str(source), cwd=scratch)
    (wheel,) = (scratch / "wheel").glob("*.whl")
    return wheel


def _environment(tree: Path, wheel: Path) -> None:
    """A virtual environment as it will be at /PREFIX, made here."""
    here = tree / PREFIX
    _run(PYTHON, "-m", "venv", "--without-pip", "--symlinks", str(here))
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--python", str(here / "bin" / "python3"), "install", "--no-compile",
         "--only-binary=:all:", str(wheel))  # fmt: skip
    for path in (here / "bin").iterdir():
        if path.is_symlink():
            continue
        if path.name.lower().startswith("activate"):
            path.unlink()
        else:
            path.write_text(path.read_text().replace(str(here), f"/{PREFIX}"))
    config = here / "pyvenv.cfg"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("command")]
    config.write_text("\n".join(lines) + "\n")
    for path in here.rglob("direct_url.json"):  # says where it was built
        path.unlink()
    for path in list(here.rglob("__pycache__")):
        shutil.rmtree(path)
    compileall.compile_dir(here / "lib", quiet=2, stripdir=str(tree), prependdir="/", workers=0)


def _files(tree: Path, source: Path, wheel: Path) -> None:
    units = tree / "lib/systemd/system"
    units.mkdir(parents=True)
    for unit in (source / "packaging/systemd").iterdir():
        text = unit.read_text().replace("/opt/jupyter/bin/", "/usr/sbin/")
        (units / unit.name).write_text(text)
    share, doc = tree / "usr/share/sandboxkernel", tree / "usr/share/doc/sandboxkernel"
    share.mkdir(parents=True)
    shutil.copy(wheel, share)
    doc.mkdir(parents=True)
    for path in (source / "README.md", source / "CHANGELOG.md", *(source / "docs").glob("*.md")):
        shutil.copy(path, doc)
    shutil.copy(source / "LICENSE", doc / "copyright")
    config = tree / "etc/jupyter"
    config.mkdir(parents=True)
    debian = Path(__file__).resolve().parents[1] / "packaging/debian"
    shutil.copy(debian / "sandboxkernel_config.py", config)
    for page in (source / "build/man").glob("*/*"):  # of `make man`
        target = tree / "usr/share/man" / page.parent.name / f"{page.name}.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress(page.read_bytes(), mtime=0))
    for shell, place in COMPLETIONS.items():
        script = tree / "usr/share" / place
        script.parent.mkdir(parents=True, exist_ok=True)
        code = f"from sandboxkernel.cli import main; main(['completion', {shell!r}])"
        script.write_text(_run(sys.executable, "-c", code, cwd=source))


def _control(tree: Path, source: Path, version: str, architecture: str) -> None:
    del source
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    for path in (*tree.rglob("*"), tree):
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
    debian = tree / "DEBIAN"
    debian.mkdir()
    major, minor = _run(PYTHON, "-c", "import sys; print(*sys.version_info[:2])").split()
    size = sum(path.stat().st_size for path in files) // 1024
    (debian / "control").write_text(
        CONTROL.format(
            version=version, architecture=architecture, size=size,
            python=f"{major}.{minor}", python_next=f"{major}.{int(minor) + 1}~",
        )
    )  # fmt: skip
    (debian / "conffiles").write_text("/etc/jupyter/sandboxkernel_config.py\n")
    sums = [f"{_md5(path)}  {path.relative_to(tree)}\n" for path in files]
    (debian / "md5sums").write_text("".join(sums))
    scripts: Sequence[str] = ("postinst", "prerm", "postrm")
    for name in scripts:
        shutil.copy(Path(__file__).resolve().parents[1] / "packaging/debian" / name, debian)
        (debian / name).chmod(0o755)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    main()
