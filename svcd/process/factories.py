"""Twisted factories from `package.module:name` of factory=."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IProtocolFactory

from svcd.errors import raised_by
from svcd.process.imports import import_object

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FactoryError", "make_factory"]


class FactoryError(Exception):
    """Error of a reference that does not lead to a Factory; the text is the whole reason, in one line."""


def make_factory(reference: str, options: object) -> IProtocolFactory:
    """Return the Factory that a reference names, or that the referenced callable returns.

    Args:
        reference: `package.module:name`; the module is imported.
        options: the options of the service, for a callable that takes an argument.

    Raises:
        FactoryError: there is no such factory.
    """
    try:
        found = import_object(reference)
    except ImportError as error:
        raise FactoryError(f"can't serve {reference}: {error}") from error
    if IProtocolFactory.providedBy(found):
        factory: IProtocolFactory = found
        return factory
    if not callable(found):
        raise FactoryError(f"can't serve {reference}: it is neither a Factory nor callable")
    try:
        made = found(options) if _needs_argument(found) else found()
    except KeyboardInterrupt:
        # Ctrl-C stops the daemon; it is not an error of this service.
        raise
    except BaseException as error:
        raise FactoryError(raised_by(reference, error)) from error
    if not IProtocolFactory.providedBy(made):
        if inspect.iscoroutine(made):
            made.close()
        raise FactoryError(f"{reference} returns {type(made).__name__}, not a Factory (IProtocolFactory)")
    return made


def _needs_argument(maker: Callable[..., object]) -> bool:
    """Return whether a callable takes the service's options. Most factory classes take no argument."""
    try:
        inspect.signature(maker).bind()
    except TypeError:
        return True
    except ValueError:
        # Built-in callables may have no signature.
        return False
    return False
