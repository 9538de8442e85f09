"""What is written for people agrees with the code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from svcd.config.endpoints import check
from svcd.config.parser import parse, parse_text
from svcd.daemon.options import Options
from svcd.host.files import LocalFiles
from svcd.protocols.catalog import BUILTINS
from tests.doubles import FakeFiles, FakeMachine
from tests.generated_texts import generated_files

if TYPE_CHECKING:
    from pathlib import Path


def test_generated_texts_are_up_to_date(project_root: Path) -> None:
    """The services file agrees with the catalog of built-ins."""
    for path, text in generated_files(project_root).items():
        assert path.read_text("utf-8") == text, f"{path} is out of date: python -m tests.generated_texts"


def test_the_services_file_that_is_installed_has_no_problems(project_root: Path) -> None:
    """It parses, and its ports do not collide."""
    config, problems = parse(str(project_root / "etc/svcd/services"), LocalFiles(), BUILTINS)
    assert not problems
    assert config.enabled
    endpoints, problems = check(config, LocalFiles(), FakeMachine())
    assert not problems
    assert {endpoint.host for endpoint in endpoints} == {"127.0.0.1", "::1"}


def test_no_line_of_the_installed_file_serves_others_unasked(project_root: Path, tmp_path: Path) -> None:
    """A line without its # is a service of this machine alone, until bind= is changed as well."""
    text = (project_root / "etc/svcd/services").read_text("utf-8")
    path = tmp_path / "services"
    path.write_text(re.sub(r"^#(?=\w+ +\d+/)", "", text, flags=re.MULTILINE))
    config, problems = parse(str(path), LocalFiles(), BUILTINS)
    assert not problems
    served = [service for service in config.enabled if not service.net.local]
    assert len(served) > len(BUILTINS)
    assert {service.options.bind for service in served} == {("127.0.0.1", "::1")}


def test_the_installed_socket_unit_listens_on_the_loopback_addresses(project_root: Path) -> None:
    """The example of socket activation opens nothing to the world either."""
    lines = (project_root / "etc/systemd/svcd.socket").read_text("utf-8").splitlines()
    listens = [line.partition("=")[2] for line in lines if line.startswith("Listen")]
    assert listens
    assert all(each.startswith(("127.0.0.1:", "[::1]:", "/")) for each in listens)


def test_the_services_files_of_the_readme_are_for_this_machine_alone(project_root: Path) -> None:
    """They have no mistakes, and listen on the loopback addresses."""
    text = (project_root / "README.md").read_text("utf-8")
    examples = re.findall(r"^```services\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(examples) > 1
    for example in examples:
        config, problems = parse_text(example, "services", LocalFiles(), BUILTINS)
        assert not problems
        endpoints, _ = check(config, FakeFiles(), FakeMachine())
        assert {endpoint.host for endpoint in endpoints} == {"127.0.0.1", "::1"}


def test_the_readme_is_short(project_root: Path) -> None:
    """It has at most 180 lines and 9,000 bytes; all else is in docs/."""
    content = (project_root / "README.md").read_bytes()
    assert content.count(b"\n") <= 180
    assert len(content) <= 9000


def test_the_lines_that_are_commented_out_have_no_problems(project_root: Path, tmp_path: Path) -> None:
    """A line without its # is a valid service, except for files that the machine may lack."""
    text = (project_root / "etc/svcd/services").read_text("utf-8")
    lines = [line.removeprefix("#") for line in text.splitlines() if not line.startswith(("# ", "#\n")) and line != "#"]
    path = tmp_path / "services"
    path.write_text("\n".join(lines))
    config, problems = parse(str(path), LocalFiles(), BUILTINS)
    (empty,) = problems
    assert empty.text == "no file matches services.d/*"
    assert len(config.services) > len(BUILTINS)


def test_the_help_names_every_builtin() -> None:
    """`twistd svcd --help` lists the built-ins."""
    assert all(name in Options.longdesc for name in BUILTINS)
