"""svcd: a super-server for the small internet services, on Twisted."""

__all__ = ["__version__"]

__version__ = "0.1.0"
