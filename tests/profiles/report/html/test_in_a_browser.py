"""``report.html`` in headless Chromium: it renders, without errors and without requests."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lvlm_profiles.report.html.page import to_html
from reports import full_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is here")
TIMEOUT_S = 120


def browse(tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[bytes]:
    """Open the page and end."""
    page = tmp_path / "report.html"
    page.write_text(to_html(full_report()), encoding="utf-8")
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless=new",
        # Chromium as root, as in a container, runs only so; the page is our own.
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}",
        *flags,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)


@NEEDS_BROWSER
def test_the_page_renders_complains_of_nothing_and_asks_for_nothing(tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    done = browse(
        tmp_path, "--dump-dom", "--enable-logging=stderr", "--v=0", f"--log-net-log={log}"
    )
    assert done.returncode == 0, done.stderr.decode()
    dom, complaints = done.stdout.decode(), done.stderr.decode()
    assert "CONSOLE" not in complaints
    assert set(re.findall(r'data-chart="([\w-]+)"', dom)) == {
        "first-token",
        "distribution",
        "speed-up",
        "trade-off",
        "further-token",
        "memory",
        "sweep",
    }
    assert len(re.findall("<rect", dom)) >= 20
    assert len(re.findall("<circle", dom)) >= 12 + 2 + 2 + 20, "every sample and every point"
    urls = re.findall(r'"url":"((?:https?|file|ftp):[^"]*)"', log.read_text(encoding="utf-8"))
    page = [url for url in urls if "report.html" in url or not _of_browser(url)]
    assert {url for url in page if not url.startswith("file:")} == set()


def _of_browser(url: str) -> bool:
    """Requests of the browser itself, whatever page is open (updates, accounts)."""
    return bool(re.match(r"https?://[\w.-]*(google|gstatic|googleapis|gvt1)\.com", url))


@NEEDS_BROWSER
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1280])
def test_the_page_has_its_colours_and_fills_any_width(
    scheme: str, width: int, tmp_path: Path
) -> None:
    from PIL import Image

    picture = tmp_path / "page.png"
    done = browse(
        tmp_path,
        f"--screenshot={picture}",
        f"--window-size={width},1600",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        "--force-device-scale-factor=1",
    )
    assert done.returncode == 0, done.stderr.decode()
    with Image.open(picture) as image:
        colours = {colour: n for n, colour in image.convert("RGB").getcolors(1 << 24) or []}
    page = {"light": (255, 255, 255), "dark": (0x12, 0x14, 0x18)}[scheme]
    vision = {"light": (0x35, 0x67, 0xC9), "dark": (0x6D, 0x97, 0xEA)}[scheme]
    assert max(colours, key=lambda each: colours[each]) == page
    assert colours.get(vision, 0) > 500, "the bars of the vision encoder"
