"""The page in a real, headless Chromium: scripts/serve.py is started as a person would."""

import pathlib
import re
import shutil
import subprocess
import sys

import gin
import pytest
import served

ROOT = pathlib.Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# A picture with a program of its own takes seconds, on a busy machine more of them.
PATIENCE = 120_000  # ms

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium isn't installed (Debian's chromium)"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of the page of a small run."""
    for name in ("starlette", "uvicorn"):
        pytest.importorskip(name, reason="the extra web isn't installed")
    folder = tmp_path_factory.mktemp("run")
    served.make_run(str(folder))
    gin.clear_config()
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "scripts/serve.py", f"--model_dir={folder}", "--port=0"],
            cwd=ROOT,
            env=served.environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            line = process.stdout.readline()
            found = re.search(r"^ckpt-0 of .*: (http://localhost:\d+/)", line)
            assert found, line + (folder / "log.txt").read_text()
            yield found[1]
        finally:
            process.terminate()
            process.wait(60)
    assert "Traceback" not in (folder / "log.txt").read_text()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Page:
    """The page, and what a person sees of it."""

    def __init__(self, page, address):
        self.page = page
        self.said, self.asked = [], []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.set_default_timeout(PATIENCE)
        page.goto(address)

    def panel(self, name):
        return self.page.locator(f"[data-picture={name}]")

    def wait(self, name, state="done"):
        """Waits until what the controls say is drawn, or refused."""
        self.page.wait_for_function(
            """([name, state]) => {
              const panel = document.querySelector(`[data-picture=${name}]`);
              const image = panel.querySelector("img");
              return panel.dataset.state === state
                && (state !== "done" || image.dataset.shows === query(panel));
            }""",
            arg=[name, state],
        )

    def shown(self, name="image"):
        """What is to be seen of a picture, pixel by pixel."""
        self.wait(name)
        image = self.panel(name).locator("img")
        assert image.evaluate("i => i.complete && i.naturalWidth > 0")
        return image.screenshot()

    def write(self, name, text):
        field = self.page.locator(f"[name={name}]")
        field.fill(text)
        field.press("Tab")  # as a person leaves it

    def choose(self, name, words):
        self.page.locator(f"[name={name}]").select_option(label=words)

    def open(self, name):
        self.panel(name).locator("summary").click()


@pytest.fixture
def page(browser, address):
    found = browser.new_page(viewport={"width": 1300, "height": 1800})
    yield Page(found, address)
    found.close()


def test_the_page_renders(page, address):
    first = page.shown()
    head = page.page.locator("#about").inner_text()
    assert head == "ckpt-0, step 0, 3 classes, 32×32"
    options = page.page.locator("[name=class] option").all_inner_texts()
    assert options == served.NAMES  # as text, whatever is in a name
    assert page.page.locator("option b").count() == 0
    assert page.page.locator("[name=weights] option").all_inner_texts() == [
        "moving average (EMA)",
        "raw",
    ]
    box = page.panel("image").locator("img").bounding_box()
    assert (box["width"], box["height"]) == (128, 128)
    # More than one colour, so there is a picture.
    assert len(first) > 1000
    assert not page.panel("way").locator("img").is_visible()
    assert page.said == []
    # Nothing is asked for elsewhere.
    assert len(page.asked) >= 5
    own = (address, "blob:" + address, "data:")
    assert [url for url in page.asked if not url.startswith(own)] == []


def test_controls_change_the_picture(page):
    seen = [page.shown()]
    for change in (
        lambda: page.choose("class", "dog"),
        lambda: page.write("seed", "5"),
        lambda: page.write("psi", "0.5"),
        lambda: page.write("truncation", "0.6"),
        lambda: page.choose("weights", "raw"),
        lambda: page.choose("batch_norm", "standing statistics"),
    ):
        change()
        seen.append(page.shown())
    assert len(set(seen)) == 7
    # And back: the first picture again.
    page.choose("class", "cat")
    page.write("seed", "0")
    page.write("psi", "1")
    page.write("truncation", "")
    page.choose("weights", "moving average (EMA)")
    page.choose("batch_norm", "as the weights need it")
    assert page.shown() == seen[0]
    page.write("count", "3")
    page.shown()
    assert page.panel("image").locator("img").bounding_box()["width"] == 3 * 128
    assert page.said == []


def test_the_slider_and_any_seed(page):
    first = page.shown()
    slider = page.page.locator("#slide")
    slider.focus()
    slider.press("Home")
    assert page.page.locator("[name=psi]").input_value() == "0"
    second = page.shown()
    assert second != first
    # Without noise seeds differ by their initial bases alone.
    page.page.locator("#any").click()
    assert re.fullmatch(r"\d+", page.page.locator("[name=seed]").input_value())
    page.shown()
    assert page.said == []


def test_interpolation_changes_with_its_ends(page):
    page.choose("batch_norm", "moving averages")
    page.open("way")
    seen = [page.shown("way")]
    box = page.panel("way").locator("img").bounding_box()
    assert box["width"] > 8.5 * box["height"]  # nine images
    assert not page.page.locator("[name=to_class]").is_visible()
    page.write("to_seed", "9")
    seen.append(page.shown("way"))
    page.choose("way", "classes")
    assert not page.page.locator("[name=to_seed]").is_visible()
    seen.append(page.shown("way"))
    page.choose("to_class", served.NAMES[2])
    seen.append(page.shown("way"))
    page.write("seed", "4")  # what all pictures have changes this one too
    seen.append(page.shown("way"))
    page.write("steps", "3")
    seen.append(page.shown("way"))
    assert len(set(seen)) == 6
    assert page.said == []


def test_the_ham_viewer_shows_maps(page):
    page.choose("batch_norm", "moving averages")
    page.open("ham")
    seen = [page.shown("ham")]
    box = page.panel("ham").locator("img").bounding_box()
    assert box["width"] > 600 and box["height"] > 400
    page.write("pixels", "1:1, 2:3")
    seen.append(page.shown("ham"))
    assert page.panel("ham").locator("img").bounding_box()["height"] > box["height"] + 100
    page.choose("network", "discriminator")
    seen.append(page.shown("ham"))
    page.write("seed", "3")
    seen.append(page.shown("ham"))
    assert len(set(seen)) == 4
    assert page.said == []


@pytest.mark.parametrize(
    "panel, name, bad, good, message",
    [
        ("image", "seed", "-1", "2", "seed must be a whole number from 0 to 2147483647, got '-1'."),
        ("image", "seed", "2147483648", "2", "seed must be a whole number"),
        ("image", "psi", "3", "1", "psi must be a number from 0 to 2"),
        ("image", "psi", "<b>x</b>", "1", "got '<b>x</b>'."),
        ("image", "truncation", "0", "", "truncation must be a number from 0.01 to 10"),
        ("way", "to_seed", "0", "1", "to_seed must be another one than the way begins with."),
        ("ham", "pixels", "99:99", "1:1", "within the map of"),
    ],
)
def test_bad_input_is_refused_in_words(page, panel, name, bad, good, message):
    page.choose("batch_norm", "moving averages")
    page.shown()
    if panel != "image":
        page.open(panel)
        page.shown(panel)
    assert page.said == []
    page.write(name, bad)
    page.wait(panel, "refused")
    refusal = page.panel(panel).locator(".refusal")
    assert refusal.is_visible()
    assert message in refusal.inner_text() and "Traceback" not in refusal.inner_text()
    page.write(name, good)
    page.shown(panel)
    assert not refusal.is_visible()
    # The browser's own word on the answer's status, and nothing else.
    assert page.said and all("status of 400" in text for text in page.said)


def test_of_quick_changes_the_last_one_is_shown(page):
    page.choose("batch_norm", "moving averages")
    page.shown()
    before = len(page.asked)
    page.page.evaluate(
        """() => {
          const seed = document.querySelector("[name=seed]");
          for (let i = 1; i <= 40; i++) {
            seed.value = i;
            seed.dispatchEvent(new Event("change", {bubbles: true}));
          }
        }"""
    )
    last = page.shown()
    images = [url for url in page.asked[before:] if "/image?" in url]
    assert "seed=40" in images[-1] and len(images) < 5
    page.write("seed", "39")
    assert page.shown() != last
    page.write("seed", "40")
    assert page.shown() == last


def test_a_server_that_is_gone_is_told(page):
    page.shown()
    page.page.context.set_offline(True)
    page.write("seed", "77")
    page.wait("image", "refused")
    assert "No picture" in page.panel("image").locator(".refusal").inner_text()
    page.page.context.set_offline(False)
    page.write("seed", "78")
    page.shown()
