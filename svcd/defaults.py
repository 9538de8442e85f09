"""Where the services file usually is, and what is served where none is: unprivileged ports, loopback only."""

__all__ = ["DEFAULT", "DEFAULT_NAME", "SERVICES_FILE"]

#: Read when no file is named, where it exists; else the embedded default.
SERVICES_FILE = "/etc/svcd/services"

#: What the embedded file is called in Problems and in the log.
DEFAULT_NAME = "<default>"

DEFAULT = """\
@defaults bind=127.0.0.1,::1

echo      10007/tcp
echo      10007/udp
discard   10009/tcp
discard   10009/udp
daytime   10013/tcp
daytime   10013/udp
chargen   10019/tcp
chargen   10019/udp
time      10037/tcp
time      10037/udp
upper     17007/tcp
http      18080/tcp
"""
