"""A headless Chromium for tests of pages, and how a page is opened in it."""

import contextlib
import json
import shutil

import pytest

_FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "no-first-run",
    "disable-quic",
)

# Schemes of what a page holds itself, and of Chromium's own pages.
_INSIDE = ("data:", "blob:", "chrome:", "chrome-untrusted:")


@contextlib.contextmanager
def started(directory):
    """A browser with its profile in `directory`; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"user-data-dir={directory}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.chrome.service.Service(driver)
    chrome = webdriver.Chrome(options=options, service=service)
    try:
        chrome.get("about:blank")  # else the new tab page goes on loading beside ours
        yield chrome
    finally:
        chrome.quit()


def open_page(chrome, address, width, scheme, height=900):
    """Opens a page at that width, "light" or "dark"; phones are narrower than 500 pixels."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    chrome.get_log("performance")
    chrome.get_log("browser")
    chrome.get(address)


def requested(chrome):
    """What was requested since the page was opened, but for what never leaves the browser."""
    events = (json.loads(entry["message"])["message"] for entry in chrome.get_log("performance"))
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        and not event["params"]["request"]["url"].startswith(_INSIDE)
    ]


def overflow(chrome):
    """By how many pixels the page is wider than its window."""
    return chrome.execute_script(
        "const d = document.documentElement; return d.scrollWidth - d.clientWidth"
    )


def colours(chrome):
    """The brightest component of the page's background and of its ink."""
    return chrome.execute_script(
        "const s = getComputedStyle(document.body);"
        "return [s.backgroundColor, s.color].map(c => Math.max(...c.match(/\\d+/g)))"
    )
