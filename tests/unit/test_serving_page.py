"""The page in a browser: painted, cancelled, edited; skipped where there is no Chromium or no playwright."""

import base64
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving_run import file, running

from flux_trt.runtime import recorded

BROWSER = "FLUX_TRT_BROWSER"
"""The variable that says where Chromium is; its libraries are found by LD_LIBRARY_PATH as they are."""
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
SHAPES = {"size": "64x64", "seed": "3", "steps": "12", "guidance": "1"}


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get(BROWSER) or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip(f"no Chromium by the names {', '.join(NAMES)}, nor in {BROWSER}")
    with sync.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def server(bundle):
    with running({"nano": bundle("flux-nano")}) as found:
        yield found


@pytest.fixture
def page(browser, server):
    made = browser.new_page(viewport={"width": 1100, "height": 760})
    made.wrong = []
    made.hosts = set()
    made.on("console", lambda line: made.wrong.append(line.text) if line.type == "error" else None)
    made.on("pageerror", lambda fault: made.wrong.append(str(fault)))
    made.on("request", lambda asked: made.hosts.add(asked.url.split("/")[2]) if "//" in asked.url else None)
    made.goto(server.url)
    made.wait_for_selector("#model option", state="attached")
    yield made
    made.close()


def fill(page, **more):
    for name, value in {**SHAPES, **more}.items():
        page.fill(f"#{name}", value)


def says(page, text):
    """Wait for the status to begin so."""
    page.wait_for_selector(f"#status:text-matches('^{text}')", timeout=60_000)


def painted(page):
    """The pixels of the picture that is shown."""
    says(page, "Done")
    text = page.evaluate(
        """async () => {
            const image = document.getElementById('picture');
            await image.decode();
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext('2d').drawImage(image, 0, 0);
            return canvas.toDataURL('image/png');
        }"""
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))).convert("RGB"))


def test_painting_a_picture(page, server, tmp_path):
    prompt = "a red circle in the center on a white background"
    fill(page, prompt=prompt)
    page.click("#paint")
    found = painted(page)
    (exact,) = server.pipelines["nano"].generate(prompt, size=(64, 64), seed=3, steps=12, guidance=1.0)
    np.testing.assert_array_equal(found, np.asarray(exact))
    red, green, blue = found[32, 32].astype(int)
    assert red > 120 > max(green, blue)
    assert "seed 3, 12 steps, guidance 1" in page.inner_text("#about")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "picture.png")
    assert recorded(tmp_path / "picture.png").parameters["prompt"] == prompt
    if place := os.environ.get("FLUX_TRT_SCREENSHOT"):
        page.screenshot(path=Path(place))
    assert page.wrong == []
    assert {each for each in page.hosts if each} == {server.url.split("/")[2]}


def test_cancelling(page, server):
    fill(page, prompt="a", steps="200")
    page.click("#paint")
    says(page, "Step")
    page.click("#cancel")
    says(page, "Cancelled")
    page.wait_for_timeout(300)
    assert server.engine.seconds_ahead() == 0
    assert page.wrong == []


def test_editing_with_a_drawn_mask(page, tmp_path):
    picture = tmp_path / "white.png"
    picture.write_bytes(file(Image.new("RGB", (64, 64), "white")))
    page.click("#edit summary")
    page.set_input_files("#file", picture)
    page.wait_for_selector("#canvas:visible")
    fill(page, prompt="a blue square in the center on a white background", steps="8")
    page.fill("#strength", "1")
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 30, box["y"] + 30, steps=4)
    page.mouse.up()
    page.click("#paint")
    found = painted(page).astype(int)
    assert np.abs(found[-8:] - 255).max() < 40, "what was not drawn on stays"
    if place := os.environ.get("FLUX_TRT_SCREENSHOT"):
        page.screenshot(path=Path(place).with_suffix(".edit.png"))
    assert page.wrong == []


def test_a_fault_is_shown(page):
    fill(page, prompt="a", size="65x64")
    page.click("#paint")
    page.wait_for_selector("#status.wrong")
    assert "multiples of 16" in page.inner_text("#status")


def test_the_page_is_closed_to_others(server):
    answer = server.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for name in ("/", "/page.js", "/page.css"):
        text = server.get(name).text
        assert "http://" not in text
        assert "https://" not in text
