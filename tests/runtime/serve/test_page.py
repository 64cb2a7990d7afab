"""The page at ``/``: what a reader of it gets, in a browser where there is one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lvlm_runtime import Session
from lvlm_runtime.chain.recorder import Recorder, Reduced
from serving import LISTING, PICTURE, QUESTION, Running

SIZES = [(1200, 900), (420, 900)]


def test_the_page_loads_nothing_from_elsewhere(server: Running) -> None:
    page = server.get("/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        assert name in page.text
        got = server.get(f"/{name}")
        assert got.headers["Content-Type"].startswith(kind)
        assert "http" not in got.text
    assert "http" not in page.text


@pytest.mark.parametrize("ratio", [0.33, 1.0])
def test_an_answer_tells_which_patches_stay(
    ratio: float, server: Running, session: Session
) -> None:
    """As the runtime's own bookkeeping, site by site."""
    left, want = np.arange(196), []

    def keep(site: str, reduced: Reduced) -> None:
        nonlocal left
        left = left[session.chain.backend.fetch(reduced.outputs["places"])[0]]
        want.append({"site": site, "kept": left.tolist()})

    session.generate(QUESTION, PICTURE, ratio, recorder=Recorder(on_reduction=keep))
    # Asked twice: what is remembered of the picture has no reductions, and is not used.
    for _ in range(2):
        answer = server.post(server.asked(QUESTION, PICTURE, ratio=ratio, patches=True)).json()
        told = answer["patches"]
        assert (told["rows"], told["columns"]) == (14, 14)
        assert told["sites"] == want
        assert told["picture"].startswith("data:image/jpeg;base64,")
        kept = answer["usage"]["visual_tokens"]
        assert not want or len(want[-1]["kept"]) == list(kept.values())[-1]
    assert bool(want) == (ratio < 1)


def test_patches_of_no_picture_are_refused(server: Running) -> None:
    response = server.post(server.asked(QUESTION, patches=True))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "patches"
    entry = server.get(f"/v1/models/{server.model}").json()
    assert entry["patches"] == [14, 14]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_reader_asks_a_question(
    scheme: str, size: tuple[int, int], server: Running, tmp_path: Path
) -> None:
    browsers = pytest.importorskip("playwright.sync_api", reason="`make test-serve` brings it")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    said: list[str] = []
    with browsers.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        width, height = size
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(server.address)
        page.set_input_files("#file", str(PICTURE))
        page.fill("#question", QUESTION)
        page.locator("#ratio[max='2']").wait_for()
        page.click("#each")
        page.locator("article dl").nth(2).wait_for()
        page.locator("canvas[data-drawn]").nth(2).wait_for()
        assert page.locator(".said").all_inner_texts() == ["yellow"] * 3
        labels = [each.get_attribute("aria-label") for each in page.locator("canvas").all()]
        assert labels == [f"{count} of 196 patches stay" for count in (196, 98, 65)]
        page.fill("#question", LISTING)
        page.check("#wants")
        page.fill("#goal", "60000")
        page.click("#ask")
        page.locator("article dl").nth(3).wait_for()
        assert page.locator("article h2").first.inner_text() == "100 % kept"
        page.fill("#goal", "1")
        page.click("#ask")
        page.locator("#error:not(:empty)").wait_for()
        assert "meets 1 ms: the fastest is" in page.inner_text("#error")
        # Nothing sticks out to the side.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=str(tmp_path / f"page-{scheme}-{width}.png"), full_page=True)
        browser.close()
    # A refusal is a line of the browser's own console, and there is no other.
    assert [each for each in said if "status of 422" not in each] == []
