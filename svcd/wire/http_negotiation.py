"""Content negotiation of HTTP: Accept and Accept-Encoding (RFC 9110, sections 12.5.1 and 12.5.3).

Malformed parts are ignored; no request is refused because of them. The length of fields is bounded by that of a request
head.
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["accepted_codings", "media_type", "takes_gzip"]

#: The number of cached fields, each at most as long as a request head. A scraper sends the same field each time.
_KNOWN = 16


def _parts(field: bytes) -> list[tuple[str, dict[str, str], float]]:
    """Return the alternatives of a field: name, parameters, weight."""
    found = []
    for part in field.decode("latin-1").lower().split(","):
        name, *rest = (piece.strip() for piece in part.split(";"))
        parameters = {key.strip(): value.strip(' "') for key, _, value in (piece.partition("=") for piece in rest)}
        try:
            weight = float(parameters.pop("q", "1"))
        except ValueError:
            weight = 0.0
        if name:
            # An invalid weight, including `nan`, counts as 0.
            found.append((name, parameters, weight if 0 <= weight <= 1 else 0.0))
    return found


#: The content codings of precompressed files, in the order of preference: usually the smallest comes first.
_CODINGS = ("br", "zstd", "gzip")


@lru_cache(_KNOWN)
def accepted_codings(field: bytes) -> tuple[str, ...]:
    """Return the content codings of _CODINGS that a client prefers to none, the best first.

    Args:
        field: Accept-Encoding; empty if there is none, which accepts no coding here.
    """
    weights = {name: weight for name, _, weight in _parts(field)}
    anything = weights.get("*", 0.0)
    weights.setdefault("gzip", weights.get("x-gzip", anything))
    # No coding is acceptable even if the field does not say so; it is then the last choice.
    lowest = weights.get("identity", 0.0)
    accepted = [(coding, weights.get(coding, anything)) for coding in _CODINGS]
    better = [(coding, weight) for coding, weight in accepted if weight > 0 and weight >= lowest]
    return tuple(coding for coding, _ in sorted(better, key=lambda each: -each[1]))


@lru_cache(_KNOWN)
def takes_gzip(field: bytes) -> bool:
    """Return whether an Accept-Encoding field, empty if there is none, permits gzip."""
    weights = {name: weight for name, _, weight in _parts(field)}
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0


@lru_cache(_KNOWN)
def media_type(field: bytes, offered: tuple[str, ...]) -> str:
    """Return the offered media type, without parameters, that a client prefers; the first if it has no preference.

    Args:
        field: Accept; empty if there is none.
        offered: the media types in the server's order of preference. If the client names a version, it must be the
            supported version: 1.0.0 of OpenMetrics, 0.0.4 of text.
    """
    best, best_weight = offered[0], 0.0
    parts = _parts(field)
    for candidate in offered:
        exact = [weight for name, parameters, weight in parts if name == candidate and _version_fits(name, parameters)]
        family = candidate.partition("/")[0]
        others = [weight for name, _, weight in parts if name == f"{family}/*"]
        anything = [weight for name, _, weight in parts if name == "*/*"]
        weight = max(exact or others or anything or [0.0])
        if weight > best_weight:
            best, best_weight = candidate, weight
    return best


def _version_fits(name: str, parameters: dict[str, str]) -> bool:
    # Several versions of a format are separate alternatives: 0.0.1 of OpenMetrics is a draft of another format.
    supported = "1.0.0" if name == "application/openmetrics-text" else "0.0.4"
    return parameters.get("version", supported) == supported
