"""Parser of services files: the meaning of each line, and the location of each mistake."""

from __future__ import annotations

import errno
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svcd.config.options import TABLE
from svcd.config.parser import parse, parse_text
from svcd.model import NetProtocol
from svcd.protocols.catalog import BUILTINS
from tests.doubles import FakeFiles, config_of, problems_of, read_files, service_of

MAIN = "/etc/svcd/services"


def test_a_line_of_etc_services_is_a_service() -> None:
    """Name, port, protocol and aliases are parsed as in /etc/services."""
    service = service_of("discard\t\t9/tcp\t\tsink null\t# a comment")
    assert (service.id, service.port, service.path) == ("discard/tcp", 9, "")
    assert (service.aliases, service.runs) == (("sink", "null"), "discard")
    assert str(service.location) == "s:1:1"


@pytest.mark.parametrize("net", [net for net in NetProtocol if not net.local])
def test_every_protocol_with_a_port(net: NetProtocol) -> None:
    """All six internet protocols are accepted."""
    assert service_of(f"echo 65535/{net}").net is net
    assert service_of(f"echo 0/{net}").port == 0


@pytest.mark.parametrize("net", [NetProtocol.UNIX, NetProtocol.UNIXGRAM])
def test_path_of_a_unix_socket(net: NetProtocol) -> None:
    """A UNIX socket has an absolute path, which may be quoted."""
    service = service_of(f"local '/run/a b/c.sock/{net}' echo")
    assert (service.net, service.port, service.path) == (net, 0, "/run/a b/c.sock")


@pytest.mark.parametrize("name", ["@a", "@svcd/echo", "@a b", "@" + "x" * 107])
@pytest.mark.parametrize("net", [NetProtocol.UNIX, NetProtocol.UNIXGRAM])
def test_name_of_an_abstract_socket(name: str, net: NetProtocol) -> None:
    """A word that begins with @ is the name of a UNIX socket without a file."""
    service = service_of(f"local '{name}/{net}' echo")
    assert (service.path, service.abstract, service.socket_file) == (name, True, "")
    assert list(service.words())[1] == f"{name}/{net}"
    assert not service_of("local /run/x/unix echo").abstract


def test_service_name_precedes_aliases() -> None:
    """The handler is the built-in of the service name, otherwise of the first alias that is a built-in."""
    assert service_of("echo 1/tcp upper").runs == "echo"
    assert service_of("shout 1/tcp loud upper echo").runs == "upper"


@pytest.mark.parametrize(
    ("words", "runs", "text"),
    [
        ("7/tcp server='/usr/bin/git daemon --inetd'", "server", "/usr/bin/git"),
        ("7/udp4 server=/usr/sbin/in.tftpd wait=yes", "server", "/usr/sbin/in.tftpd"),
        ("/r/x/unix python=game.score:Handler", "python", "game.score:Handler"),
        ("7/tcp6 factory=game.score:make", "factory", "game.score:make"),
        ("7/tcp redirect=[::1]:70", "redirect", "[::1]:70"),
        ("7/tcp echo", "echo", "echo"),
    ],
)
def test_handler_of_a_service(words: str, runs: str, text: str) -> None:
    """An option sets the handler, whatever the service name; without one a built-in is the handler."""
    for name in ("echo", "x"):
        service = service_of(f"{name} {words}")
        assert (service.runs, service.handler_text) == (runs, text)
        assert service.spawned == (runs in ("server", "python"))


def test_group_of_a_socket_file() -> None:
    """Without a process group= is the group of the file; owner= can always set it."""
    assert service_of("e /r/e/unix echo group=adm").file_group == "adm"
    assert service_of("e /r/e/unix echo owner=git:adm").file_group == "adm"
    assert service_of("e /r/e/unix server=/bin/cat group=adm").file_group == ""
    assert service_of("e /r/e/unix server=/bin/cat group=adm owner=:www").file_group == "www"


def test_default_of_log_on_success_depends_on_the_handler() -> None:
    """A spawned service logs its process and no bytes, unless log_on_success is set."""
    assert service_of("echo 7/tcp").logged == ("HOST", "EXIT", "DURATION", "TRAFFIC")
    assert service_of("x 7/tcp redirect=h:7").logged == ("HOST", "EXIT", "DURATION", "TRAFFIC")
    assert service_of("x 7/tcp server=/bin/cat").logged == ("PID", "HOST", "EXIT", "DURATION")
    assert service_of("x 7/tcp server=/bin/cat log_on_success=TRAFFIC").logged == ("TRAFFIC",)
    assert service_of("x 7/tcp server=/bin/cat log_on_success=none").logged == ()


def test_id_option() -> None:
    """id= sets the identifier, with the protocol; the handler still follows from the name."""
    service = service_of("echo 7/tcp id=lan")
    assert (service.id, service.name, service.runs) == ("lan/tcp", "echo", "echo")


_PORTS = """\
# ports
echo\t\t7/tcp
echo\t\t8/udp   # not the same
www-http  80/tcp  www http
3com-amp3 629/tcp
odd 0/tcp odder
broken
http 81/tcp
"""


@pytest.mark.parametrize(
    ("where", "port"),
    [
        ("echo/tcp", 7),
        ("echo/tcp6", 7),
        ("echo/udp4", 8),
        ("http/tcp", 80),
        ("www-http/tcp4", 80),
        ("3com-amp3/tcp", 629),
    ],
)
def test_port_by_name(where: str, port: int) -> None:
    """A name or an alias of /etc/services for the protocol stands for its port; the first line counts."""
    files = FakeFiles({"/etc/services": _PORTS})
    config, problems = parse_text(f"mine {where} echo", "s", files, BUILTINS)
    assert not problems
    assert config.services[0].port == port


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("htpp/tcp", ", and not a name in /etc/services for tcp (did you mean 'http'?)"),
        ("http/udp", ", and not a name in /etc/services for udp"),
        ("odd/tcp", ", and not a name in /etc/services for tcp"),
        ("-x/tcp", ""),
    ],
)
def test_unknown_port_name(where: str, problem: str) -> None:
    """The mistake has the nearest known name."""
    files = FakeFiles({"/etc/services": _PORTS})
    name = where.partition("/")[0]
    assert problems_of(f"mine {where} echo", files) == [
        f"s:1:6: port {name!r} is not a number from 0 to 65535{problem}"
    ]


def test_options_of_a_line() -> None:
    """Options come after the aliases, and a quoted value may have any characters."""
    service = service_of("web 80/tcp http root=/srv/www index='a#b.html,c' 'description=it is = \"x\" # y'")
    assert (service.runs, service.aliases) == ("http", ("http",))
    assert service.options.root == "/srv/www"
    assert service.options.index == ("a#b.html", "c")
    assert service.options.description == 'it is = "x" # y'
    assert str(service.locations["root"]) == "s:1:22"


def test_disabled_line_needs_no_handler() -> None:
    """A disabled line is in the Config, and not among the enabled services."""
    config = config_of("nobody 1/tcp disable=yes\nupper 2/udp disable=yes\necho 3/tcp disable=no")
    assert [service.runs for service in config.services] == ["", "upper", "echo"]
    assert [service.name for service in config.enabled] == ["echo"]


ROWS = [
    # Field 2.
    ("echo", "s:1:1: 'echo' has no port; write it as: echo port/protocol"),
    ("echo 7", "s:1:6: '7' is not port/protocol, as in 7/tcp or /run/echo.sock/unix"),
    ("echo 7/sctp", "s:1:8: SCTP is not supported; remove or comment out the line"),
    ("echo 7/dccp", "s:1:8: DCCP is not supported; remove or comment out the line"),
    ("echo 7/tpc", ("s:1:8: unknown protocol 'tpc' (did you mean 'tcp'?); the protocols are tcp, tcp4, tcp6, "
                    "udp, udp4, udp6, unix, unixgram")),
    ("echo 7/", "s:1:8: unknown protocol ''; the protocols are tcp, tcp4, tcp6, udp, udp4, udp6, unix, unixgram"),
    ("echo 65536/tcp", "s:1:6: port '65536' is not a number from 0 to 65535"),
    ("echo -1/udp", "s:1:6: port '-1' is not a number from 0 to 65535"),
    ("echo ٣/tcp", "s:1:6: port '٣' is not a number from 0 to 65535"),
    ("echo http/tcp", "s:1:6: port 'http' is not a number from 0 to 65535, and not a name in /etc/services for tcp"),
    ("echo /run/e/tcp", "s:1:6: port '/run/e' is not a number from 0 to 65535"),
    ("echo 7/unix", "s:1:6: a unix service takes the absolute path of its socket, or @NAME, not '7'"),
    ("echo @/unix", "s:1:6: an abstract socket needs a name after the @"),
    (f"echo @{'x' * 108}/unix", "s:1:6: the name is longer than the 107 bytes an abstract socket can have"),
    ("echo @x/tcp", "s:1:6: port '@x' is not a number from 0 to 65535"),
    ("echo run/e/unixgram", "s:1:6: a unixgram service takes the absolute path of its socket, or @NAME, not 'run/e'"),
    ("echo /run//unix", "s:1:6: a unix service takes the absolute path of its socket, or @NAME, not '/run/'"),
    (f"echo /{'x' * 107}/unix", "s:1:6: the path is longer than the 107 bytes a UNIX socket can have"),
    (f"echo /{'é' * 54}/unix", "s:1:6: the path is longer than the 107 bytes a UNIX socket can have"),
    # Field 1 and aliases.
    ("'' 7/tcp echo", "s:1:1: '' is not a service name; a name is not empty and contains no / or ="),
    ("a/b 7/tcp echo", "s:1:1: 'a/b' is not a service name; a name is not empty and contains no / or ="),
    ("a=b 7/tcp echo", "s:1:1: 'a=b' is not a service name; a name is not empty and contains no / or ="),
    ("echo 7/tcp ''", "s:1:12: an empty word; remove the quotes"),
    ("echo 7/tcp\n discard 9/tcp", ("s:2:10: '9/tcp' among the aliases; a line that begins with white space "
                                    "continues the previous line; remove the white space if this is a separate "
                                    "service")),
    # What runs.
    ("ecoh 7/tcp", ("s:1:1: no handler for 'ecoh' (did you mean 'echo'?); add server=, python=, factory= or "
                   "redirect=, a built-in as an alias "
                   f"({', '.join(sorted(BUILTINS))}), or disable=yes")),
    ("zzz 7/udp", ("s:1:1: no handler for 'zzz'; add server= with wait=yes, a built-in as an alias "
                  f"({', '.join(sorted(name for name, each in BUILTINS.items() if each.datagram))}), "
                  "or disable=yes")),
    ("x 7/tcp server=/bin/cat redirect=h:7",
     "s:1:34: redirect: server= at s:1:16 already selects the handler; remove one of the two"),
    ("x 7/tcp factory=a:b server=/bin/cat disable=yes",
     "s:1:28: server: factory= at s:1:17 already selects the handler; remove one of the two"),
    ("x 7/udp server=/bin/cat", "s:1:16: server: udp has no connections; add wait=yes"),
    ("x /r/x/unixgram server=/bin/cat wait=no", "s:1:24: server: unixgram has no connections; add wait=yes"),
    ("echo 7/udp python=a:b wait=yes",
     "s:1:19: python: udp has no connections; only server= with wait=yes serves datagrams"),
    ("x 7/udp6 redirect=h:7", ("s:1:19: redirect: udp6 has no connections; only server= with wait=yes serves "
                               "datagrams")),
    ("x 7/tcp server=cat", ("s:1:16: server takes the absolute path of a program and its arguments, quoted as in "
                            "a shell, not 'cat'")),
    ("x 7/tcp python=a", "s:1:16: python takes package.module:name, not 'a'"),
    ("x 7/tcp redirect=h", "s:1:18: redirect takes host:port or [address]:port, with a numeric port, not 'h'"),
    ("echo 7/tcp user=git", ("s:1:17: user is for spawned services (server=, python=) and services with cgi=, not for "
                             "echo over tcp")),
    ("x 7/tcp redirect=h:7 nice=5",
     "s:1:27: nice is for spawned services (server=, python=) and services with cgi=, not for redirect= over tcp"),
    ("x 7/tcp python=a:b wait=yes", "s:1:25: wait is for services with server=, not for python= over tcp"),
    ("echo 7/tcp group=adm",
     ("s:1:18: group is for spawned services (server=, python=), services with cgi= and UNIX sockets (unix, unixgram), "
      "not for echo over tcp")),
    ("upper 7/udp", ("s:1:1: upper is not served over udp, only over tcp, tcp4, tcp6, unix; change the protocol, "
                     "or add disable=yes")),
    ("web /run/x/unixgram http", ("s:1:1: http is not served over unixgram, only over tcp, tcp4, tcp6, unix; "
                                  "change the protocol, or add disable=yes")),
    # Options.
    ("echo 7/tcp modle=thread", "s:1:12: unknown option 'modle' (did you mean 'model'?)"),
    ("echo 7/tcp backlg=5", "s:1:12: unknown option 'backlg' (did you mean 'backlog'?)"),
    ("echo 7/tcp =5", "s:1:12: unknown option ''"),
    ("echo 7/tcp Backlog=5", "s:1:12: unknown option 'Backlog' (did you mean 'backlog'?)"),
    ("echo 7/tcp backlog=0", "s:1:20: backlog takes a whole number from 1 to 9999999, not '0'"),
    ("echo 7/tcp backlog=", "s:1:20: backlog takes a whole number from 1 to 9999999, not ''"),
    ("echo 7/tcp nodelay=maybe", "s:1:20: nodelay takes yes or no, not 'maybe'"),
    ("echo 7/tcp\n   nodelay=maybe", "s:2:12: nodelay takes yes or no, not 'maybe'"),
    ("echo 7/tcp backlog=5 backlog=6", "s:1:22: backlog is set twice; the first is at s:1:20; remove one"),
    ("echo 7/udp backlog=5", "s:1:20: backlog is for stream services (tcp, unix), not for echo over udp"),
    ("echo /r/e/unix nodelay=no", "s:1:24: nodelay is for tcp services, not for echo over unix"),
    ("echo /r/e/unixgram bind=::1", "s:1:25: bind is for services with a port (tcp, udp), not for echo over unixgram"),
    ("echo 7/tcp mode=0660", "s:1:17: mode is for UNIX sockets (unix, unixgram), not for echo over tcp"),
    ("shout 7/tcp upper root=/x", "s:1:24: root is for http services, not for upper over tcp"),
    ("foo 7/tcp utc=no disable=yes", "s:1:15: utc is for daytime services, not for foo over tcp"),
    # Directives.
    ("@default a=b", ("s:1:1: unknown directive '@default' (did you mean '@defaults'?); the directives are "
                      "@defaults and @include")),
    ("@defaults server=/bin/cat", ("s:1:11: server= selects the handler of one service; set it on its line, not "
                                   "in @defaults")),
    ("@defaults id=x", "s:1:11: id= names one service; set it on its line, not in @defaults"),
    ("echo 7/tcp id=a/b", "s:1:15: id takes a word without blanks, / and =, not 'a/b'"),
    ("@defaults resolve", "s:1:11: @defaults takes option=value, not 'resolve'"),
    ("@defaults resolv=yes", "s:1:11: unknown option 'resolv' (did you mean 'resolve'?)"),
    ("@defaults resolve=1", "s:1:19: resolve takes yes or no, not '1'"),
    ("@include", "s:1:1: @include takes one file name or pattern; quote it if it has blanks"),
    ("@include a b", "s:1:1: @include takes one file name or pattern; quote it if it has blanks"),
    ("echo 7/tcp only_from='10.0.0.1  ::1'",
     ("s:1:22: only_from takes a comma-separated list of addresses, networks such as 10.0.0.0/8 or fd00::/8, host "
      "names and .domains; or nothing, not '10.0.0.1  ::1'; separate the values by commas: only_from=10.0.0.1,::1")),
    ("echo 7/tcp backlog='1 2'", "s:1:20: backlog takes a whole number from 1 to 9999999, not '1 2'"),
    ("@include nowhere", "s:1:10: can't read nowhere: No such file or directory"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), ROWS)
def test_a_mistake_has_its_place_and_its_remedy(text: str, problem: str) -> None:
    """One mistake gives one problem, with its line, its column and the remedy."""
    assert problems_of(text) == [problem]


_ALIASES = "; aliases come before the options"
TRAILING = [
    ("only_from=10.1.2.3 10.1.2.4", "'10.1.2.4' follows only_from=: if it belongs to that value, write "
                                    "only_from=10.1.2.3,10.1.2.4" + _ALIASES),
    ("no_access=10.1.2.3, .x.org", "'.x.org' follows no_access=: if it belongs to that value, write "
                                   "no_access=10.1.2.3,.x.org" + _ALIASES),
    ("access_times=8:00-9:00 10:00-11:00", "'10:00-11:00' follows access_times=: if it belongs to that value, write "
                                           "access_times=8:00-9:00,10:00-11:00" + _ALIASES),
    ("log_on_success=HOST EXIT", "'EXIT' follows log_on_success=: if it belongs to that value, write "
                                 "log_on_success=HOST,EXIT" + _ALIASES),
    ("idle_timeout=10 m", "'m' follows idle_timeout=: if it belongs to that value, write idle_timeout=10m" + _ALIASES),
    ("description=for me", "'me' follows description=: if it belongs to that value, write description='for me'"
                           + _ALIASES),
    ("backlog=5 6", "'6' follows backlog=: quote a value with blanks, or separate its parts with commas" + _ALIASES),
    ("resolve=yes upper", "'upper' follows resolve=: quote a value with blanks, or separate its parts with commas"
                          + _ALIASES),
    ("backlog= 5", "'5' follows backlog=: write backlog=5" + _ALIASES),
    ("backlog=5 ''", "an empty word; remove the quotes"),
    ("backlog=5\n upper 9/tcp", ("'9/tcp' among the options; a line that begins with white space continues the "
                                 "previous line; remove the white space if this is a separate service")),
    ("cps=50 10", ("'10' follows cps=, and there is no option 'cps': write rate=50/s; there is no waiting time: "
                   "the next client is accepted as soon as the rate allows")),
]  # fmt: skip


@pytest.mark.parametrize(("words", "problem"), TRAILING)
@pytest.mark.parametrize("line", ["echo 7/tcp", "echo 7/tcp sink", "@defaults", "@defaults nodelay=no"])
def test_word_after_an_option_is_a_mistake(line: str, words: str, problem: str) -> None:
    """The rest of a value with a blank is a mistake with a remedy, not an alias."""
    [found] = problems_of(f"{line} {words}")
    assert found.partition(": ")[2] == problem


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("server=/bin/cat -n", "'-n' follows server=: if it belongs to that value, write server='/bin/cat -n'"),
        ("server=/bin/git daemon --base=/srv", ("'daemon --base=/srv' follows server=: if it belongs to that value, "
                                               "write server='/bin/git daemon --base=/srv'")),
        ("server=/bin/cat user=nobody nogroup", ("'nogroup' follows user=: quote a value with blanks, or "
                                                 "separate its parts with commas")),
        ("server=/bin/cat env=A=1 B=2", "'B=2' follows env=: if it belongs to that value, write env='A=1 B=2'"),
        ("redirect=localhost 80", "'80' follows redirect=: if it belongs to that value, write redirect=localhost:80"),
    ],
)  # fmt: skip
def test_unquoted_arguments_of_handlers_are_mistakes(words: str, problem: str) -> None:
    """The arguments of a program after a blank are not dropped."""
    [found] = problems_of(f"x 7/tcp {words}")
    assert found.partition(": ")[2] == problem + _ALIASES


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("backlog = 5", "blanks around = in backlog =; write backlog=5"),
        ("backlog =5 nodelay=no", "blanks around = in backlog =; write backlog=5"),
        ("only_from = 10.0.0.1 10.0.0.2 nodelay=no", ("blanks around = in only_from =; write "
                                                     "only_from=10.0.0.1,10.0.0.2")),
        ("backlog = x", "blanks around = in backlog =; write backlog=VALUE"),
        ("only_from += 10.0.0.1", "only_from +=: write all its values in one only_from="),
        ("only_from-=10.0.0.1", "only_from-=: write all its values in one only_from="),
        ("socket_type = stream", ("no option 'socket_type': the protocol selects the socket type: PORT/tcp for "
                                  "stream, PORT/udp for dgram; raw and seqpacket are not supported")),
        ("protocol = tcp", "no option 'protocol': write it after the port, as in 7/tcp"),
        ("type = TCPMUX", "no option 'type': write mux=yes"),
        ("type=INTERNAL", "no option 'type': remove it, and name the built-in as the service or as an alias"),
        ("flags=KEEPALIVE", "no option 'flags': write keepalive=yes"),
        ("flags = IPv6", "no option 'flags': write PORT/tcp6 or PORT/udp6"),
        ("flags=INTERCEPT", ("no option 'flags': KEEPALIVE is keepalive=yes, NODELAY is nodelay=yes, NAMEINARGS "
                             "is argv0=NAME, IPv4 and IPv6 are PORT/tcp4 and PORT/tcp6; svcd has no other flags")),
        ("log_type = FILE /var/log/x", ("no option 'log_type': svcd writes one log for all services; set its "
                                        "destination with twistd --logfile FILE or --syslog, or with svcd "
                                        "--log-format journald")),
        ("server_args = -n -u", ("no option 'server_args': write the arguments after the program: "
                                 "server='/path/program -n -u'")),
        ("server_args=-n", ("no option 'server_args': write the arguments after the program: "
                            "server='/path/program -n'")),
        ("cps = 50 10", ("no option 'cps': write rate=50/s; there is no waiting time: the next client is "
                         "accepted as soon as the rate allows")),
        ("rlimit_files=10", "no option 'rlimit_files': write rlimit_nofile=NUMBER"),
        ("instances=UNLIMITED", ("instances takes a whole number from 1 to 9999999; or none, not 'UNLIMITED'; "
                                 "xinetd's UNLIMITED is written none")),
        ("log_on_success=HOST,USERID", ("log_on_success takes a comma-separated list of PID, HOST, EXIT, "
                                        "DURATION, TRAFFIC; or none, not 'HOST,USERID'; identification of users "
                                        "(RFC 1413) is not supported; remove it")),
        ("disable", "'disable' is an option, not an alias; write disable=VALUE"),
    ],
)  # fmt: skip
def test_words_of_xinetd_get_a_remedy(words: str, problem: str) -> None:
    """Options and spellings of xinetd are mistakes with the word to write instead."""
    [found] = problems_of(f"echo 7/tcp {words}")
    assert found.partition(": ")[2] == problem


_BLOCK = "this is a block of xinetd.conf(5); write each service as one line: NAME PORT/PROTOCOL option=value ..."


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("service ftp", _BLOCK),
        ("defaults", _BLOCK),
        ("{\n socket_type = stream", _BLOCK),
        ("}", _BLOCK),
        ("includedir /etc/xinetd.d", "write a line: @include DIRECTORY/*"),
        ("ftp stream tcp nowait root /usr/sbin/ftpd", ("this is a line of inetd.conf(5); write it as: ftp PORT/tcp "
                                                           "server='/path/program arguments' user=USER")),
        ("x 7/vsock echo", ("vsock is not supported; serve PORT/tcp or PATH/unix, and pass connections on with "
                           "socat(1)")),
        ("rstatd rpc/udp", "RPC services are not supported; run the program outside svcd, with rpcbind(8)"),
        ("x 7/mptcp echo", "write PORT/tcp and mptcp=yes"),
    ],
)  # fmt: skip
def test_lines_of_other_super_servers_get_a_remedy(line: str, problem: str) -> None:
    """The problem of a line of xinetd.conf(5) or inetd.conf(5) has the name of its format."""
    [found] = problems_of(line)
    assert found.partition(": ")[2] == problem


def test_all_problems_are_reported_together() -> None:
    """A file with every mistake has every problem, in the order of the lines."""
    texts = [text for text, _ in ROWS]
    problems = problems_of("\n".join(texts))
    assert len(problems) == len(ROWS)
    lines = [int(problem.split(":")[1]) for problem in problems]
    assert lines == sorted(lines)

    def without_lines(texts: list[str]) -> list[str]:
        return [re.sub(r"\bs:\d+:", "s:", text) for text in texts]

    assert without_lines(problems) == without_lines([problem for _, problem in ROWS])


def test_several_mistakes_of_one_line() -> None:
    """Name, port, alias and options of one line are all checked."""
    problems = problems_of("a/b 99999/tcp '' no=1 backlog=x")
    assert [problem.split(": ")[0] for problem in problems] == ["s:1:1", "s:1:5", "s:1:15", "s:1:18", "s:1:31"]


def test_defaults_apply_to_later_lines_in_their_scope() -> None:
    """A default that does not apply to a line is ignored there, and not a mistake."""
    config = config_of(
        "echo 1/tcp\n@defaults backlog=5 utc=yes\necho 2/tcp4\necho 3/udp\ndaytime 4/udp\ndaytime 5/tcp backlog=6"
    )
    assert [service.options.backlog for service in config.services] == [1024, 5, 1024, 1024, 6]
    assert [service.options.utc for service in config.services] == [False, False, False, True, True]
    assert str(config.services[1].locations["backlog"]) == "s:2:19"
    assert "backlog" not in config.services[2].locations


def test_later_defaults_override_earlier_ones() -> None:
    """Each @defaults changes its own options and keeps the others."""
    config = config_of("@defaults backlog=5 nodelay=no\n@defaults backlog=6\necho 1/tcp")
    assert (config.services[0].options.backlog, config.services[0].options.nodelay) == (6, False)


def test_defaults_apply_to_included_files() -> None:
    """An included file starts with the defaults of the including file; its own defaults end with it."""
    config, problems = read_files({
        MAIN: "@defaults backlog=5\n@include inner\necho 1/tcp",
        "/etc/svcd/inner": "upper 2/tcp\n@defaults backlog=7\nupper 3/tcp4",
    })  # fmt: skip
    assert not problems
    assert [(service.name, service.options.backlog) for service in config.services] == [
        ("upper", 5),
        ("upper", 7),
        ("echo", 5),
    ]


def test_include_reads_matching_files_in_order() -> None:
    """A pattern is relative to its file; matches are sorted, without backup files and hidden files."""
    config, problems = read_files({
        MAIN: "@include services.d/*\necho 1/tcp",
        "/etc/svcd/services.d/20-b": "upper 3/tcp",
        "/etc/svcd/services.d/10-a": "discard 2/tcp\n@include sub/x",
        "/etc/svcd/services.d/sub/x": "time 9/tcp",
        "/etc/svcd/services.d/10-a~": "no such line",
        "/etc/svcd/services.d/10-a.bak": "no such line",
        "/etc/svcd/services.d/.10-a.swp": "no such line",
    })  # fmt: skip
    assert not problems
    assert [service.name for service in config.services] == ["discard", "time", "upper", "echo"]


def test_include_of_an_absolute_path() -> None:
    """An absolute path is not relative to the including file."""
    config, problems = read_files({MAIN: "@include /srv/more", "/srv/more": "echo 1/tcp"})
    assert not problems
    assert str(config.services[0].location) == "/srv/more:1:1"


@pytest.mark.parametrize(
    "name",
    [
        *(f"nrpe.{end}" for end in ("bak", "new", "old", "orig", "rej", "rpmnew", "rpmorig", "rpmsave", "swp", "tmp")),
        *(f"nrpe.{end}" for end in ("dpkg-old", "dpkg-dist", "dpkg-new", "dpkg-tmp", "ucf-dist", "ucf-old")),
        *("nrpe~", "#nrpe#", "README", "README.md", ".nrpe", ".nrpe.swp", ".#nrpe"),
    ],
)
def test_include_skips_backup_files(name: str) -> None:
    """Backup files of editors and packages that match a pattern are not read; they are if a line has their name."""
    folder = "/etc/svcd/services.d"
    config, problems = read_files({
        MAIN: "@include services.d/*",
        f"{folder}/nrpe": "echo 1/tcp",
        f"{folder}/{name}": "no such line",
    })  # fmt: skip
    assert not problems
    assert [service.name for service in config.services] == ["echo"]
    config, _ = read_files({MAIN: f"@include 'services.d/{name}'", f"{folder}/{name}": "echo 1/tcp"})
    assert [service.name for service in config.services] == ["echo"]


@pytest.mark.parametrize("name", ["nrpe.conf", "new", "old", "tmp", "a.newer", "dpkg-old", "READ", "x#", "#x", "a.b"])
def test_include_reads_names_similar_to_backup_files(name: str) -> None:
    """Files with similar names are read."""
    config, problems = read_files({MAIN: "@include d/*", f"/etc/svcd/d/{name}": "echo 1/tcp"})
    assert not problems
    assert [service.name for service in config.services] == ["echo"]


def test_a_pattern_without_a_match_is_a_warning() -> None:
    """A pattern without a match gives a warning; a missing file is a mistake."""
    assert problems_of("@include services.d/*") == ["s:1:10: warning: no file matches services.d/*"]
    _, problems = read_files({MAIN: "@include d/*\necho 1/tcp", "/etc/svcd/d/x.rpmsave": "echo 2/tcp"})
    assert problems == [f"{MAIN}:1:10: warning: no file matches d/* except 1 skipped"]


def test_a_file_without_a_line_is_a_warning() -> None:
    """An included file without lines gives a warning, since it may have been truncated."""
    _, problems = read_files({MAIN: "@include d\necho 1/tcp", "/etc/svcd/d": "# to be written\n"})
    assert problems == [f"{MAIN}:1:10: warning: /etc/svcd/d has no lines; add a service, or remove the file"]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("", "no line defines a service; nothing is served"),
        ("# echo 7/tcp\n@defaults backlog=5", "no line defines a service; nothing is served"),
        ("echo 7/tcp disable=yes", "every service is disabled; nothing is served"),
    ],
)
def test_a_file_that_serves_nothing_is_a_warning(text: str, warning: str) -> None:
    """A file without an enabled service gives a warning, not a mistake."""
    assert read_files({MAIN: text})[1] == [f"{MAIN}: warning: {warning}"]


def test_mistakes_hide_the_warning_that_nothing_is_served() -> None:
    """With a mistake there is no warning about missing services."""
    assert len(read_files({MAIN: "echo 7"})[1]) == 1


_AT_ACCEPT = {
    "only_from": "10.0.0.1",
    "no_access": "10.0.0.1",
    "per_source": "5",
    "per_source_rate": "5/s",
    "proxy_protocol": "10.0.0.1",
    "banner": "/b",
}


@pytest.mark.parametrize(("option", "value"), _AT_ACCEPT.items())
def test_access_defaults_of_wait_services_are_warnings(option: str, value: str) -> None:
    """A stream service with wait=yes ignores these defaults, with a warning; on its own line they are kept."""
    config, problems = parse_text(
        f"@defaults {option}={value}\necho 1/tcp\nx 2/tcp server=/bin/cat wait=yes\ny 3/tcp server=/bin/cat\n"
        f"z 4/tcp server=/bin/cat wait=yes {option}={value}\nd 5/tcp server=/bin/cat wait=yes disable=yes",
        "s",
        FakeFiles(),
        BUILTINS,
    )
    assert list(map(str, problems)) == [
        (
            f"s:1:{12 + len(option)}: warning: {option}: ignored for x/tcp, whose process accepts the connections "
            "itself (wait=yes)"
        )
    ]
    assert [option in service.locations for service in config.services] == [True, False, True, True, False]
    default = TABLE[option].default
    assert [getattr(service.options, option) == default for service in config.services] == [
        *(False, True, False, False, True)
    ]


def test_pattern_characters_in_the_directory() -> None:
    """Only the word of the line is a pattern, not the directory of the file."""
    config, problems = parse(
        "/srv/a[1]/services",
        _LiteralDirectory({"/srv/a[1]/services": "@include d/*", "/srv/a[1]/d/x": "echo 1/tcp"}),
        BUILTINS,
    )
    assert not problems
    assert [service.name for service in config.services] == ["echo"]


class _LiteralDirectory(FakeFiles):
    """Files whose `matches` takes the pattern literally up to the last folder, once unescaped as in glob(7)."""

    def matches(self, pattern: str) -> list[str]:
        assert pattern == "/srv/a[[]1]/d/*"
        return super().matches(pattern.replace("[[]", "["))


def test_include_cycle_has_its_chain() -> None:
    """A file that includes itself through another is a problem at the line that closes the cycle."""
    _, problems = read_files({
        MAIN: "echo 1/tcp\n@include  b",
        "/etc/svcd/b": "@include ./services",
    })  # fmt: skip
    assert problems == [
        (
            "/etc/svcd/b:1:10: includes itself: /etc/svcd/services -> /etc/svcd/b -> /etc/svcd/./services; "
            "remove one of these lines"
        )
    ]


def test_a_file_may_be_included_twice() -> None:
    """Only a cycle is a problem: a file that is included twice gives its lines twice."""
    config, problems = read_files({MAIN: "@include b\n@include b", "/etc/svcd/b": "echo 1/tcp"})
    assert not problems
    assert len(config.services) == 2


@pytest.mark.parametrize("code", [errno.EACCES, errno.EISDIR])
def test_a_file_that_cannot_be_read(code: int) -> None:
    """The problem is at the line that includes the file, with the reason of the system."""
    _, problems = read_files({MAIN: "\n@include b", "/etc/svcd/b": OSError(code, os.strerror(code))})
    remedy = "; to include the files in it, write @include /etc/svcd/b/*" if code == errno.EISDIR else ""
    assert problems == [f"{MAIN}:2:10: can't read /etc/svcd/b: {os.strerror(code)}{remedy}"]


def test_a_missing_main_file() -> None:
    """The problem has the file as its location, without a line."""
    assert read_files({})[1] == [f"{MAIN}: can't read {MAIN}: No such file or directory"]


def test_problems_of_included_files_name_those_files() -> None:
    """Each problem has the path of its file, and all files are read."""
    _, problems = read_files({
        MAIN: "@include *.d\nech 1/tcp\n",
        "/etc/svcd/1.d": b"\xef\xbb\xbfecho 7\r\n",
        "/etc/svcd/2.d": b"echo 7/tcp \xff",
    })  # fmt: skip
    assert [problem.split(": ")[0] for problem in problems] == [
        "/etc/svcd/1.d:1:6",
        "/etc/svcd/2.d:1:12",
        f"{MAIN}:2:1",
    ]


GRAMMAR = st.sampled_from([
    "echo", " ", "\t", "\n", "7/tcp", "9/udp", "/r/x/unix", "upper", "@defaults", "@include", "*", MAIN, "'", '"',
    "\\", "#", "=", "backlog=5", "resolve=yes", "mode=0", "shutdown_timeout=1.5h", "bind=", ",", "disable=yes", "é",
    "\0", "\r\n", "999999", "-", "@", "sctp", "description=", "log_on_success=none",
])  # fmt: skip


@given(st.one_of(st.text(), st.lists(GRAMMAR).map("".join)))
def test_any_text_gives_a_config_or_problems(text: str) -> None:
    """An invalid text causes only problems, and each location is in the text."""
    config, problems = parse_text(text, "s", FakeFiles(), BUILTINS)
    assert all(problem.location.file == "s" and problem.text for problem in problems)
    assert all(service.name for service in config.services)


@given(st.one_of(st.binary(), st.lists(GRAMMAR).map(lambda words: "".join(words).encode())))
def test_any_bytes_give_a_config_or_problems(data: bytes) -> None:
    """Invalid bytes in files that include themselves cause only problems."""
    files = FakeFiles({MAIN: b"@include b*\n" + data, "/etc/svcd/b": data})
    config, problems = parse(MAIN, files, BUILTINS)
    assert all(service.location.file in (MAIN, "/etc/svcd/b") for service in config.services)
    assert all(str(problem).startswith(("/etc/svcd/", MAIN)) for problem in problems)
