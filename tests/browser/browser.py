"""Headless Chromium as a reviewer uses it: opens pages, waits for what it is to see, and takes pictures."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

Value = TypeVar("Value")

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_SECONDS = 30
WIDTH, HEIGHT = 1440, 1000
COLOURS = 128  # of a picture, which is then a third of its size
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--lang=en-GB",
    # With a mouse, as at a desk: pages show tools over charts when there is none.
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
    # Pages must do with what their own server gives.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def installed() -> tuple[str, str] | None:
    """The programs of Chromium and of its driver; None where one of them is missing."""
    browser = next((path for name in NAMES if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One window.

    Args:
        programs: of Chromium and its driver.
        profile: an empty folder for what Chromium keeps.
        pictures: where pictures go.
    """

    def __init__(self, programs: tuple[str, str], profile: Path, pictures: Path) -> None:
        options = ChromeOptions()
        options.binary_location, driver = programs
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        self.pictures = pictures
        self.driver = Chrome(options=options, service=Service(driver))
        self.resize(WIDTH)

    def before_each_page(self, script: str) -> None:
        """Runs a script before those of every page that is opened from now on."""
        self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})

    def resize(self, width: int, height: int = HEIGHT) -> None:
        """Gives the page, without the window's frame, this size in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def open(self, url: str, *seen: str) -> None:
        """Opens a page anew and waits until it shows all of these words."""
        self.driver.get("about:blank")  # else a change behind the # would load nothing
        self.driver.get(url)
        self.see(*seen)

    def see(self, *words: str) -> None:
        """Waits until the page shows all of these words."""
        for each in words:
            self.until(lambda each=each: each in self.text, f"the page to show {each!r}")

    def within(self, frame: str, *words: str) -> None:
        """Waits until a page within the page, the first that a selector matches, shows all of these words."""
        self.driver.switch_to.frame(self.until(lambda: self.all(frame), frame)[0])
        try:
            self.see(*words)
        finally:
            self.driver.switch_to.default_content()

    def until(self, condition: Callable[[], Value], what: str) -> Value:
        """Waits until a condition gives something that is true, and gives it.

        Raises:
            AssertionError: it has not become true in time; the message has what the page shows.
        """
        wait = WebDriverWait(
            self.driver, WAIT_SECONDS, 0.1, (StaleElementReferenceException, ElementClickInterceptedException)
        )
        try:
            return wait.until(lambda _: condition())
        except TimeoutException:
            raise AssertionError(
                f"waited {WAIT_SECONDS} s for {what}; {self.driver.current_url} shows: {self.text}"
            ) from None

    @property
    def text(self) -> str:
        """What the page shows, as a reader reads it: words with one blank between them."""
        return " ".join(self.script("return document.body ? document.body.innerText : ''").split())

    def script(self, code: str, *arguments: Any) -> Any:
        """Runs JavaScript in the page."""
        return self.driver.execute_script(code, *arguments)  # type: ignore[no-untyped-call]

    def texts(self, css: str) -> list[str]:
        """What the elements say that a selector matches now."""
        found: list[str] = self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", css)
        return [text.replace("\u00a0", " ") for text in found]

    def all(self, css: str, within: WebElement | None = None) -> list[WebElement]:
        """The elements that a selector matches now."""
        return (within or self.driver).find_elements(By.CSS_SELECTOR, css)

    def named(self, css: str, words: str) -> WebElement:
        """The first element of a kind that says exactly this."""
        return self.until(
            lambda: next((each for each in self.all(css) if each.text.strip() == words), None),
            f"{css} that says {words!r}",
        )

    def click(self, css: str, words: str) -> None:
        """Clicks on the element of a kind that says exactly this."""
        self.until(lambda: self.named(css, words).click() or True, f"{words!r} to take a click")

    def into_sight(self, element: WebElement) -> None:
        """Scrolls an element into the middle of the window."""
        self.script("arguments[0].scrollIntoView({block: 'center'})", element)

    def links(self) -> dict[str, str]:
        """What the page's links say -> where they lead."""
        return dict(self.script("return [...document.links].map(a => [a.innerText.trim(), a.href])"))

    def has_colours(self, element: WebElement) -> bool:
        """Whether anything is drawn in an element that is neither white, grey nor black."""
        shown = Image.open(io.BytesIO(element.screenshot_as_png)).convert("HSV")
        return max(shown.getchannel("S").tobytes()) > 100

    def picture(self, name: str, height: int | None = None) -> Path:
        """Takes a picture of what the window shows.

        Args:
            name: of the file, without its ending.
            height: of the upper part that is kept, in pixels; None for all.
        """
        shot = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        kept = shot.crop((0, 0, shot.width, min(height or shot.height, shot.height)))
        path = self.pictures / f"{name}.png"
        kept.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        return path

    def close(self) -> None:
        """Ends Chromium and its driver."""
        self.driver.quit()
