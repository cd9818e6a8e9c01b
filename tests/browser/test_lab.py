"""JupyterLab in Chromium, as its user sees a sandboxed kernel.

SANDBOXKERNEL_SCREENSHOTS=1 writes the pictures of the documentation to docs/images/.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from tests.conformance.server import Server, running_server
from tests.conformance.session import KERNEL_NAME
from tests.support import MUST_RUN, ROOT, RunningDaemon, wait_until

playwright = pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Locator, Page, expect, sync_playwright  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DISPLAY_NAME = "Sandboxed Python"
TIMEOUT_MS = 60_000
NOTIFICATIONS = "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
CELLS = [
    "import os, platform, socket\n\n"
    'print("Python", platform.python_version(), "in sandbox", platform.node())\n'
    'print("processes:", [p for p in os.listdir("/proc") if p.isdigit()])\n'
    'print("network:  ", [name for _, name in socket.if_nameindex()])',
    "import numpy\nfrom IPython.display import HTML\n\n"
    "m = numpy.arange(9.0).reshape(3, 3)\n"
    'HTML(f"<b>trace of m·m:</b> {numpy.trace(m @ m):.0f}")',
    "rounds = 0\nwhile True:\n    rounds += 1",
]

if CHROMIUM is None and not MUST_RUN:
    pytest.skip("no chromium", allow_module_level=True)


@pytest.fixture
def lab(
    daemon: RunningDaemon, talk_to_the_daemon: None, work: Path, tmp_path: Path
) -> Iterator[Server]:
    document = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in CELLS],
        metadata={
            "kernelspec": {
                "name": KERNEL_NAME,
                "display_name": DISPLAY_NAME,
                "language": "python",
            }
        },
    )
    nbformat.write(document, work / "analysis.ipynb")
    settings = tmp_path / "settings" / NOTIFICATIONS
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    env = {
        **os.environ,
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
    }
    with running_server(work, tmp_path / "lab.log", application="lab", env=env) as server:
        yield server


@pytest.fixture
def page(lab: Server) -> Iterator[Page]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        yield page
        browser.close()


def open_lab(page: Page, lab: Server, path: str = "") -> None:
    page.goto(f"{lab.url}/lab{path}?token={lab.token}")
    expect(page.locator("#jupyterlab-splash")).to_have_count(0)
    expect(page.locator(".jp-LabShell, #main").first).to_be_visible()


def screenshot(page: Page, tmp_path: Path, name: str) -> None:
    wanted = os.environ.get("SANDBOXKERNEL_SCREENSHOTS") == "1"
    folder = ROOT / "docs" / "images" if wanted else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / name)
    if wanted:
        (folder / name).chmod(0o644)


def cell(page: Page, index: int) -> Locator:
    return page.locator(".jp-Notebook .jp-CodeCell").nth(index)


def run_cell(page: Page, index: int) -> None:
    cell(page, index).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")


def run_first_cell(page: Page, index: int = 0) -> None:
    """For a moment a new notebook has a kernel to show and none to run cells with.

    JupyterLab drops what is run in that moment, so the key is pressed until the cell has a number.
    """
    prompt = cell(page, index).locator(".jp-InputPrompt")

    def accepted() -> bool:
        run_cell(page, index)
        with contextlib.suppress(AssertionError):
            expect(prompt).to_have_text(re.compile(r"\[\d+\]:"), timeout=3000)
            return True
        return False

    wait_until(accepted, timeout_s=60, what="the notebook runs a cell")


def command(page: Page, name: str) -> Locator:
    return page.locator(f'.jp-NotebookPanel-toolbar [data-command="{name}"]')


def kernel_status(page: Page, status: str) -> None:
    expect(page.locator(f'.jp-Notebook-ExecutionIndicator[data-status="{status}"]')).to_be_visible()


def test_launcher_starts_a_sandbox(
    page: Page, lab: Server, daemon: RunningDaemon, tmp_path: Path
) -> None:
    open_lab(page, lab)
    cards = page.locator(".jp-Launcher .jp-LauncherCard").filter(has_text=DISPLAY_NAME)
    expect(cards.first).to_be_visible()
    screenshot(page, tmp_path, "launcher.png")
    cards.first.click()
    expect(page.locator(".jp-NotebookPanel")).to_be_visible()
    expect(page.locator("#jp-main-statusbar")).to_contain_text(f"{DISPLAY_NAME} | Idle")
    cell(page, 0).locator(".cm-content").click()
    page.keyboard.type("import os; os.getpid() < 10")
    run_first_cell(page)
    expect(cell(page, 0).locator(".jp-OutputArea-output")).to_have_text("True")
    (kernel,) = daemon.client().kernels()
    assert kernel.kernel_name == KERNEL_NAME


def test_notebook_runs_is_interrupted_restarted_and_shut_down(
    page: Page, lab: Server, daemon: RunningDaemon, tmp_path: Path
) -> None:
    open_lab(page, lab, "/tree/analysis.ipynb")
    kernel_status(page, "idle")
    run_first_cell(page)
    (kernel,) = daemon.client().kernels()
    expect(cell(page, 0).locator(".jp-OutputArea-output")).to_contain_text(kernel.id)
    expect(cell(page, 0).locator(".jp-OutputArea-output")).to_contain_text("['lo']")
    run_cell(page, 1)
    expect(cell(page, 1).locator(".jp-RenderedHTML")).to_contain_text("trace")
    kernel_status(page, "idle")
    screenshot(page, tmp_path, "lab.png")

    run_cell(page, 2)
    kernel_status(page, "busy")
    # Busy begins before the loop does: an interrupt that early would find no cell.
    wait_until(lambda: daemon.client().stats(kernel.id).cpu_usage_s > 0)
    expect(cell(page, 2).locator(".jp-InputPrompt")).to_have_text("[*]:")
    command(page, "notebook:interrupt-kernel").click()
    expect(cell(page, 2).locator(".jp-OutputArea-output")).to_contain_text("KeyboardInterrupt")
    kernel_status(page, "idle")
    screenshot(page, tmp_path, "interrupt.png")
    assert daemon.client().inspect(kernel.id).generation == 1, "interrupted, not restarted"

    command(page, "notebook:restart-kernel").click()
    page.locator(".jp-Dialog .jp-mod-accept").click()
    wait_until(lambda: daemon.client().inspect(kernel.id).generation == 2)
    kernel_status(page, "idle")
    run_cell(page, 0)
    expect(cell(page, 0).locator(".jp-InputPrompt")).to_have_text("[1]:")

    page.locator(".lm-MenuBar-item", has_text="Kernel").click()
    page.locator(".lm-Menu-item").filter(has_text="Shut Down Kernel").click()
    wait_until(lambda: not list(daemon.client().kernels()), what="the kernel is gone")
    kernel_status(page, "unknown")


def test_dead_kernel_is_announced_and_restarted(
    page: Page, lab: Server, daemon: RunningDaemon, work: Path
) -> None:
    document = nbformat.read(work / "analysis.ipynb", as_version=4)
    document.cells = [
        nbformat.v4.new_code_cell(source) for source in ("1 + 1", "import os; os._exit(9)")
    ]
    nbformat.write(document, work / "dies.ipynb")
    open_lab(page, lab, "/tree/dies.ipynb")
    kernel_status(page, "idle")
    # It presses the key until a cell runs, and in the dialog that key would mean "OK".
    run_first_cell(page)
    expect(cell(page, 0).locator(".jp-OutputArea-output")).to_have_text("2")
    run_cell(page, 1)
    dialog = page.locator(".jp-Dialog")
    expect(dialog).to_contain_text("appears to have died")
    dialog.locator(".jp-mod-accept").click()
    (kernel,) = daemon.client().kernels()
    wait_until(lambda: daemon.client().inspect(kernel.id).generation == 2)
    kernel_status(page, "idle")
