"""A headless Chromium, controlled through chromedriver (https://www.w3.org/TR/webdriver2/)."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Browser"]

_SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
#: Time in which a page has to reach the state that a test waits for, in seconds.
_PATIENCE = 30.0


class Browser:
    """A browser with its own profile.

    Args:
        folder: an empty directory for the profile.
    """

    def __init__(self, folder: Path) -> None:
        driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
        if driver is None or chromium is None:
            pytest.skip("chromium and chromedriver are not installed")
        self._root = ""
        port = self._start(driver)
        try:
            self._begin(chromium, folder, port)
        except BaseException:
            self.end()
            raise

    def _start(self, driver: str) -> str:
        """Start the driver and return its port: one that is free over IPv6, and may be taken over IPv4."""
        for _ in range(10):
            self._driver = subprocess.Popen(
                [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert self._driver.stdout is not None
            said = ""
            for line in self._driver.stdout:
                said += line
                if found := re.search(r"on port (\d+)\.", line):
                    return found[1]
            self._driver.stdout.close()
            self._driver.wait(20)
        raise AssertionError(f"chromedriver does not start: {said}")

    def _begin(self, chromium: str, folder: Path, port: str) -> None:
        root = f"http://127.0.0.1:{port}/session"
        options = {"binary": chromium, "args": [*_SWITCHES, f"--user-data-dir={folder}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        session = self._ask("POST", root, {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        self._root = f"{root}/{session}"

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def end(self) -> None:
        """End browser and driver, and reap the driver."""
        try:
            if self._root:
                self._ask("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(20)
            if self._driver.stdout is not None:
                self._driver.stdout.close()

    def visit(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """Run a script and return its value."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def tell(self, command: str, **parameters: object) -> Any:
        """Send a command of the Chrome DevTools protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def until(self, script: str, wanted: Callable[[Any], bool] = bool) -> Any:
        """Return the value of a script once it satisfies a condition."""
        end = time.monotonic() + _PATIENCE
        while not wanted(value := self.run(script)):
            assert time.monotonic() < end, f"{script} is still {value!r}"
            time.sleep(0.05)
        return value

    def screenshot(self) -> bytes:
        """Return a screenshot of the page, a PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def complaints(self) -> list[str]:
        """Return the new lines of the console: errors, and violations of the page's policy."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Return the new URLs that pages have requested over the network."""
        sent = [each["request"]["url"] for each in self._events("Network.requestWillBeSent")]
        return [url for url in sent if not url.startswith(("chrome:", "data:"))]

    def statuses(self) -> dict[str, list[int]]:
        """Return the statuses of new responses by URL, in order, as the network has them."""
        found: dict[str, list[int]] = {}
        urls: dict[str, str] = {}
        for each in self._events("Network.requestWillBeSent", "Network.responseReceivedExtraInfo"):
            if "request" in each:
                urls[each["requestId"]] = each["request"]["url"]
            elif each["requestId"] in urls:
                found.setdefault(urls[each["requestId"]], []).append(each["statusCode"])
        return found

    def _events(self, *methods: str) -> list[Any]:
        """Return the parameters of new events of the Chrome DevTools protocol."""
        entries = self._ask("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [each["params"] for each in messages if each["method"] in methods]
