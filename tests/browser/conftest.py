"""A real browser for the tests of pages: headless Chromium, without a network, whose requests are written down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MISSING = "needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium"
FLAGS = (
    "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip


class Browser:
    """One window. Each `open` starts afresh: console and requests are those of the page that is open."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """Opens a file at this size of the window."""
        self.driver.get("about:blank")
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        # Smooth scrolling would still be under way when a click comes.
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(page.resolve().as_uri())

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script's `return`; `arguments` are its `arguments`."""
        return self.driver.execute_script(script, *arguments)

    def console(self) -> list[str]:
        """Errors and warnings since the page was opened or since they were last asked for."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """What was asked for since the page was opened that is neither a file nor inside the page."""
        entries = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = [
            entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"
        ]
        assert any(url.startswith("file:") for url in sent), "the log holds no request at all, not even the page's"
        return [url for url in sent if not url.startswith(("file:", "data:"))]

    def overflow(self, width: int = 375) -> int:
        """Pixels by which the page is wider than a window of this width."""
        self.resize(width)
        return self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def count(self, selector: str) -> int:
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()
        self.settle()

    def point(self, selector: str) -> None:
        """Moves the pointer there."""
        from selenium.webdriver.common.action_chains import ActionChains

        at = self.driver.find_element("css selector", selector)
        ActionChains(self.driver, duration=0).move_to_element(at).perform()
        self.settle()

    def set(self, selector: str, value: str | float) -> None:
        """What a user does to an input or a select: the value changes, and the page is told."""
        script = (
            "const [at, value] = [document.querySelector(arguments[0]), arguments[1]]; at.value = value;"
            "for (const name of ['input', 'change']) at.dispatchEvent(new Event(name, {bubbles: true}));"
        )
        self.run(script, selector, str(value))
        self.settle()

    def press(self, *keys: str) -> None:
        """Keys such as "ArrowRight", "Enter", "Escape" or "Tab", for what has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        names = {"ArrowLeft": "ARROW_LEFT", "ArrowRight": "ARROW_RIGHT"}
        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(getattr(Keys, names.get(key, key.upper()))).perform()
        self.settle()

    def settle(self) -> None:
        """Waits until what was to be drawn is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));"
        )

    def wait(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the page did not get there in time"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, one for a session; where there is none the test is skipped, in CI it fails."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        webdriver = None
    if program is None or driver is None or webdriver is None:
        if os.environ.get("RETINA_REQUIRE_BROWSER"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    if os.geteuid() == 0:  # as in a container, where Chromium refuses its sandbox
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver, log_output=subprocess.DEVNULL)
    opened = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(opened)
    finally:
        opened.quit()
