"""The artefact: what an installation of svcd consists of."""

from __future__ import annotations

import importlib.metadata

import pytest


@pytest.fixture
def installed() -> importlib.metadata.Distribution:
    """The installed distribution; skipped when svcd runs from its sources."""
    try:
        return importlib.metadata.distribution("svcd")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("svcd is not installed, it runs from its sources")


def test_files(installed: importlib.metadata.Distribution) -> None:
    """The wheel holds the package, one plugin file, and the data of etc/; no __init__ and no cache of Twisted's."""
    names = {str(path) for path in installed.files or () if "__pycache__" not in str(path)}
    outside = {name for name in names if not name.startswith(("svcd/", "svcd-"))}
    ends = [
        "bin/svcctl",
        "bin/svcd",
        *(f"share/man/man{name[-1]}/{name}" for name in ("svcctl.1", "svcd-services.5", "svcd.8")),
    ]
    for end in ends:
        [found] = [name for name in outside if name.endswith(end)]
        outside.remove(found)
    assert outside == {"twisted/plugins/svcd_plugin.py"}
    assert {"svcd/py.typed", "svcd/tap.py", "svcd/wire/http_request.py"} <= names
    assert {"svcd/etc/svcd/services", "svcd/etc/systemd/svcd.service", "svcd/etc/sysusers.d/svcd.conf"} <= names
    page = {f"svcd/protocols/status/{name}" for name in ("page.html", "page.css", "page.js", "icon.svg")}
    assert page <= names
    assert {f"svcd/cli/schemas/{name}.json" for name in ("check", "diff", "explain", "options")} <= names


def test_dependencies(installed: importlib.metadata.Distribution) -> None:
    """The base install stays small: these few, three of which twisted[tls] brings anyway; all else is an extra."""
    required = [line for line in installed.requires or () if "extra ==" not in line]
    names = sorted(line.split(">")[0].split("[")[0].split(";")[0] for line in required)
    assert names == [
        "cffi",
        "cryptography",
        "httptools",
        "ifaddr",
        "pyopenssl",
        "service-identity",
        "twisted",
        "uvloop",
    ]
