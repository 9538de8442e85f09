"""The path of the usual services file, and the name of the embedded one."""

__all__ = ["DEFAULT_NAME", "SERVICES_FILE"]

#: The services file that is read if none is named; if it does not exist, the embedded default is used.
SERVICES_FILE = "/etc/svcd/services"

#: The name of the embedded default in problems and in the log.
DEFAULT_NAME = "<default>"
