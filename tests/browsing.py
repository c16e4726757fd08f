"""Chromium, headless, for pages that are made or served here."""

from __future__ import annotations

import shutil
import time

import pytest

BROWSER = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--window-size=1000,900",
)


def headless_chromium():
    """Start a browser that draws with WebGL in software; skip where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:  # pip has none: .ci/run takes Debian's
        pytest.skip("no chromium with chromedriver is installed to open the page with")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in BROWSER:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    return webdriver.Chrome(options=options, service=service)


def waited(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def done(action):
    """Whether an action of the driver is done: not while the page is drawn anew."""
    try:
        action()
    except pytest.importorskip("selenium.common").WebDriverException:
        return False
    return True
