"""The status service with its clients: scrapers, probes, and a browser."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from svcd.protocols.status.cache import MAX_AGE
from tests.real.browser import Browser
from tests.real.daemon import PATIENCE, Daemon, exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

READERS: Any = {"text/plain": read_text, "application/openmetrics-text": read_openmetrics}


def _get(daemon: Daemon, path: str, **fields: str) -> bytes:
    url = f"http://127.0.0.1:{daemon.port('status/tcp4')}{path}"
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in fields.items()})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        content: bytes = answer.read()
        return gzip.decompress(content) if answer.headers.get("Content-Encoding") == "gzip" else content


def _metrics(daemon: Daemon, kind: str = "text/plain") -> dict[tuple[str, ...], float]:
    text = _get(daemon, "/metrics", Accept=kind, Accept_Encoding="gzip").decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in READERS[kind](text)
        for sample in family.samples
    }


def _agree(daemon: Daemon, wanted: dict[tuple[str, ...], float]) -> None:
    """Wait until all connections are counted and the cache has expired, and compare both formats."""
    end = time.monotonic() + PATIENCE
    while not wanted.items() <= (found := _metrics(daemon)).items():
        missing = {name: (value, found.get(name)) for name, value in wanted.items() if found.get(name) != value}
        assert time.monotonic() < end, missing
        time.sleep(0.05)
    time.sleep(MAX_AGE)
    for kind in READERS:
        assert wanted.items() <= _metrics(daemon, kind).items()


def _refused(daemon: Daemon, service: str) -> None:
    """Connect a client that is refused: closed or reset without data."""
    with daemon.connect(service) as client, contextlib.suppress(ConnectionResetError):
        assert client.recv(10) == b""


def test_metrics_agree_with_the_clients(start: Callable[..., Daemon]) -> None:
    """After a mixed run each count equals that of the clients."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = nobody.getsockname()[1]
    daemon = start(
        "@defaults bind=127.0.0.1\n"
        "echo 0/tcp4\necho 0/udp4\n"
        "private 0/tcp4 echo only_from=192.0.2.0/24\n"
        "few 0/tcp4 echo instances=2\n"
        "cat 0/tcp4 server=/bin/cat log_on_success=TRAFFIC\n"
        "false 0/tcp4 server=/bin/false\n"
        f"gone 0/tcp4 redirect=127.0.0.1:{closed}\n"
        "status 0/tcp4\n"
    )
    for size in range(20):
        assert exchange(daemon.connect("echo/tcp4"), b"x" * size) == b"x" * size
    for _ in range(3):
        with daemon.connect("echo/tcp4") as client:
            client.sendall(b"12345")
            assert client.recv(5) == b"12345"
            # Closing resets the connection (socket(7)).
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for _ in range(5):
        _refused(daemon, "private/tcp4")
        exchange(daemon.connect("gone/tcp4"))
        exchange(daemon.connect("false/tcp4"))
        assert exchange(daemon.connect("cat/tcp4"), b"miau") == b"miau"
    with daemon.connect("few/tcp4") as one, daemon.connect("few/tcp4") as other:
        for client in (one, other):
            client.sendall(b"?")
            assert client.recv(1) == b"?"
        for _ in range(7):
            _refused(daemon, "few/tcp4")
        with daemon.connect("echo/udp4") as asker:
            for _ in range(4):
                asker.send(b"abc")
                assert asker.recv(10) == b"abc"
        total = sum(range(20)) + 15
        accepted, ended, refused = (
            "svcd_connections_accepted_total",
            "svcd_connections_ended_total",
            "svcd_refused_total",
        )
        _agree(
            daemon,
            {
                (accepted, "echo/tcp4"): 23,
                (ended, "done", "echo/tcp4"): 20,
                (ended, "echo/tcp4", "lost"): 3,
                ("svcd_connections_active", "echo/tcp4"): 0,
                ("svcd_received_bytes_total", "echo/tcp4"): total,
                ("svcd_sent_bytes_total", "echo/tcp4"): total,
                ("svcd_connection_duration_seconds_count", "echo/tcp4"): 23,
                (accepted, "private/tcp4"): 0,
                (refused, "address", "private/tcp4"): 5,
                (accepted, "few/tcp4"): 2,
                ("svcd_connections_active", "few/tcp4"): 2,
                ("svcd_connections_limit", "few/tcp4"): 2,
                # Open connections are included.
                ("svcd_received_bytes_total", "few/tcp4"): 2,
                (refused, "few/tcp4", "instances"): 7,
                (accepted, "gone/tcp4"): 5,
                (ended, "failed", "gone/tcp4"): 5,
                ("svcd_connections_failed_total", "gone/tcp4"): 5,
                (accepted, "cat/tcp4"): 5,
                (ended, "cat/tcp4", "done"): 5,
                ("svcd_received_bytes_total", "cat/tcp4"): 20,
                ("svcd_children_exited_total", "0", "cat/tcp4"): 5,
                ("svcd_children_exited_total", "1", "false/tcp4"): 5,
                ("svcd_children_active", "cat/tcp4"): 0,
                ("svcd_spawn_latency_seconds_count", "cat/tcp4"): 5,
                ("svcd_datagrams_received_total", "echo/udp4"): 4,
                ("svcd_received_bytes_total", "echo/udp4"): 12,
                ("svcd_ready",): 1,
            },
        )


def test_counts_over_reloads(start: Callable[..., Daemon]) -> None:
    """Reloads are counted by result; the counts of changed services go on, those of removed services are gone."""
    lines = "@defaults bind=127.0.0.1\nstatus 0/tcp4\n"
    daemon = start(f"{lines}echo 0/tcp4\nold 0/tcp4 echo\n")
    exchange(daemon.connect("echo/tcp4"), b"x")
    daemon.file.write_text(f"{lines}echo 0/tcp4 instances=9\nnew 0/tcp4 echo\n")
    daemon.process.send_signal(1)
    daemon.wait_for(lambda line: " reload " in line)
    daemon.file.write_text("nonsense\n")
    daemon.process.send_signal(1)
    daemon.wait_for(lambda line: " reload-failed " in line or " reload_failed " in line)
    accepted = "svcd_connections_accepted_total"
    _agree(
        daemon,
        {
            ("svcd_reloads_total", "ok"): 1,
            ("svcd_reloads_total", "failed"): 1,
            (accepted, "echo/tcp4"): 1,
            (accepted, "new/tcp4"): 0,
            ("svcd_connections_limit", "echo/tcp4"): 9,
        },
    )
    found = _metrics(daemon)
    assert (accepted, "old/tcp4") not in found
    assert 0 < found["svcd_config_seconds",] < PATIENCE


def test_default_addresses(start: Callable[..., Daemon], has_ipv6: bool) -> None:
    """Without bind= it listens on the loopback addresses of the available families."""
    daemon = start("status 0/tcp\n")
    hosts = {address.rpartition(":")[0] for address in daemon.addresses("status/tcp")}
    assert hosts == ({"127.0.0.1", "[::1]"} if has_ipv6 else {"127.0.0.1"})


def test_curl(start: Callable[..., Daemon], program: Callable[[str], str]) -> None:
    """curl gets the page, compressed metrics, probes, JSON and HEAD; another host name is refused."""
    daemon = start("status 0/tcp4\n")
    root = f"http://127.0.0.1:{daemon.port('status/tcp4')}"

    def curl(*words: str) -> str:
        words = (program("curl"), "--silent", "--show-error", "--max-time", "30", *words)
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert curl(f"{root}/").startswith("<!doctype html>")
    assert "# TYPE svcd_build_info gauge" in curl("--compressed", f"{root}/metrics")
    assert curl(f"{root}/healthz", f"{root}/readyz") == "ok\nready\n"
    assert json.loads(curl("--compressed", f"{root}/status.json"))["state"] == "ready"
    assert "200 OK" in curl("--head", f"{root}/metrics")
    code = ("--output", "/dev/null", "--write-out", "%{http_code}")
    assert curl(*code, "--request", "POST", f"{root}/metrics") == "405"
    assert curl(*code, "--header", "Host: evil.example", f"{root}/metrics") == "421"
    assert curl(*code, f"{root}/services") == "404"


def test_reactor_lag_is_measured(start: Callable[..., Daemon]) -> None:
    """The lag of the reactor is measured four times a second."""
    daemon = start("status 0/tcp4\n")
    end = time.monotonic() + PATIENCE
    while not (found := _metrics(daemon)).get(("svcd_reactor_lag_seconds_count",), 0) >= 4:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert found["svcd_reactor_lag_seconds_sum",] >= 0
    assert found["svcd_descriptors_limit",] > found["svcd_descriptors_used",] >= 1


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Return a browser with an empty profile."""
    made = Browser(tmp_path / "profile")
    yield made
    made.end()


SERVICES = """\
@defaults bind=127.0.0.1
echo     0/tcp4  description='<b>&amp;"'
private  0/tcp4  echo  only_from=192.0.2.1
status   0/tcp4
"""

_CELLS = """
const found = {};
for (const row of document.querySelectorAll('#services > tr')) {
  const cells = [...row.querySelectorAll('[data-k]')].map((cell) => [cell.dataset.k, cell.textContent]);
  found[row.dataset.id] = Object.fromEntries(cells);
}
return found;
"""


@pytest.mark.load
def test_live_page(start: Callable[..., Daemon], browser: Browser) -> None:
    """The page shows new connections, without messages in the console and without requests to other hosts."""
    daemon = start(SERVICES)
    root = f"http://127.0.0.1:{daemon.port('status/tcp4')}/"
    browser.visit(root)
    assert list(browser.run(_CELLS)) == ["echo/tcp4", "private/tcp4", "status/tcp4"]
    assert browser.run(_CELLS)["echo/tcp4"]["accepted"] == "0"
    for _ in range(3):
        exchange(daemon.connect("echo/tcp4"), b"hello")
        _refused(daemon, "private/tcp4")
    echo = browser.until(_CELLS, lambda cells: cells["echo/tcp4"]["accepted"] == "3")["echo/tcp4"]
    assert (echo["in"], echo["out"], echo["open"]) == ("15 B", "15 B", "0")
    assert browser.until(_CELLS, lambda cells: cells["private/tcp4"]["refused"] == "3")
    recent = browser.run("return [...document.querySelectorAll('#recent > tr')].map((row) => row.innerText)")
    assert sum("echo/tcp4" in row for row in recent) == 3
    assert "address" in browser.run("return document.getElementById('refused').innerText")
    # A chart is drawn as soon as there is a sample that is not empty.
    assert browser.until("return document.querySelector('#services .came-line').getAttribute('d')").startswith("M")
    assert browser.run("return document.querySelector('#services small').textContent") == '<b>&amp;"'
    assert browser.run("return document.getElementById('live').textContent").startswith("live")
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith(root)] == []


@pytest.mark.load
def test_page_shows_states(start: Callable[..., Daemon], browser: Browser, open_folder: Path) -> None:
    """Paused and disabled services, and failed processes, appear without a reload of the page."""
    control = str(open_folder / "control")
    services = "false 0/tcp4 server=/bin/false\nold 0/tcp4 echo disable=yes\ngone 0/tcp4 server=/no/such\n"
    daemon = start(f"{SERVICES}{services}", "--control", control)
    browser.visit(f"http://127.0.0.1:{daemon.port('status/tcp4')}/")
    browser.run("window.first = true")
    states = (
        "const found = {}; for (const row of document.querySelectorAll('#services > tr')) "
        "found[row.dataset.id.split('/')[0]] = row.querySelector('.state').textContent + ' ' + row.dataset.state;"
        "return found;"
    )
    on = dict.fromkeys(("echo", "private", "status", "false"), "on on")
    assert browser.run(states) == {**on, "old": "disabled disabled", "gone": "broken broken"}
    exchange(daemon.connect("false/tcp4"))
    for words in (["pause", "echo"], ["disable", "private"]):
        subprocess.run([sys.executable, "-m", "svcd", "--control", control, *words], check=True, timeout=PATIENCE)
    found = browser.until(states, lambda found: found["private"] == "disabled disabled")
    assert found["echo"] == "paused paused"
    cells = browser.until(_CELLS, lambda cells: cells["false/tcp4"]["failed_exits"] == "1")
    assert cells["false/tcp4"]["failed"] == "0"
    assert browser.run("return window.first")
    assert browser.complaints() == []


@pytest.mark.load
def test_script_and_server_draw_the_same(start: Callable[..., Daemon], browser: Browser) -> None:
    """The rows are identical with and without JavaScript."""
    daemon = start(SERVICES)
    root = f"http://127.0.0.1:{daemon.port('status/tcp4')}/"
    for size in (1, 1234, 99_999):
        exchange(daemon.connect("echo/tcp4"), b"x" * size)
    time.sleep(2 * MAX_AGE)
    row = 'return document.querySelector(\'#services > tr\').outerHTML.replace(/ d="[^"]*"| aria-label="[^"]*"/g, \'\')'
    # The rate falls with time, down to zero.
    browser.visit(root)
    drawn = browser.until(row, lambda text: ">0</td>" in text)
    still = "return document.querySelector('#services > tr [data-k=rate]').textContent"
    browser.until(still, lambda text: text == "0")
    drawn = browser.run(row)
    browser.tell("Emulation.setScriptExecutionDisabled", value=True)
    # The page without JavaScript reloads itself; scripts of the driver run nevertheless.
    browser.visit(root)
    assert "as of page load" in browser.run("return document.getElementById('live').textContent")
    assert browser.run(row) == drawn


@pytest.mark.load
def test_colours_and_narrow_screens(start: Callable[..., Daemon], browser: Browser, tmp_path: Path) -> None:
    """The colours follow prefers-color-scheme, and no width needs horizontal scrolling."""
    daemon = start(SERVICES)
    browser.visit(f"http://127.0.0.1:{daemon.port('status/tcp4')}/")
    colours = set()
    for scheme in ("light", "dark"):
        browser.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
        for width in (360, 800, 1440):
            browser.tell(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
            )
            assert browser.run("return document.documentElement.scrollWidth") <= width
            (tmp_path / f"{scheme}-{width}.png").write_bytes(browser.screenshot())
    assert len(colours) == 2
