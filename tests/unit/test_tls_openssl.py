"""The private names of pyOpenSSL that svcd uses: they exist, and one module uses them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from OpenSSL import SSL

import svcd

ROOT = Path(next(iter(svcd.__path__)))
MODULE = ROOT / "tls" / "openssl.py"
#: The functions and constants of OpenSSL that the module uses. set_groups() can do without SSL_CTX_set1_curves_list.
BINDINGS = sorted({*re.findall(r"\blib\.(\w+)", MODULE.read_text("utf-8"))} - {"SSL_CTX_set1_curves_list"})
HELP = "svcd/tls/openssl.py uses it, and this version of pyOpenSSL or cryptography has it no more"


def test_bindings_exist() -> None:
    """OpenSSL._util has ffi and lib."""
    try:
        util = importlib.import_module("OpenSSL._util")
    except ImportError:
        pytest.fail(f"there is no OpenSSL._util: {HELP}")
    missing = {"ffi", "lib"} - set(vars(util))
    assert not missing, f"OpenSSL._util lacks {missing}: {HELP}"


@pytest.mark.parametrize("name", BINDINGS)
def test_openssl_function_exists(name: str) -> None:
    """The bindings have each function and each constant that is used."""
    util = importlib.import_module("OpenSSL._util")
    assert hasattr(util.lib, name), f"OpenSSL._util.lib lacks {name}: {HELP}"


def test_private_attributes_exist() -> None:
    """Contexts and connections of pyOpenSSL have the private attributes that are used."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    assert hasattr(context, "_context"), f"SSL.Context lacks _context: {HELP}"
    connection = SSL.Connection(context, None)
    for name in ("_ssl", "_into_ssl", "_from_ssl", "_raise_ssl_error"):
        assert hasattr(connection, name), f"SSL.Connection lacks {name}: {HELP}"


def test_private_names_are_used_in_one_module() -> None:
    """No other module of svcd imports OpenSSL._util or uses private attributes of pyOpenSSL."""
    private = re.compile(r"OpenSSL\._util|\.(_ssl|_into_ssl|_from_ssl|_raise_ssl_error)\b|\bcontext\._context\b")
    users = [path for path in ROOT.rglob("*.py") if private.search(path.read_text("utf-8"))]
    assert users == [MODULE]
