"""The one place that knows which services run: it opens them, starts them, changes them, and lets them end."""

from svcd.supervisor.commands import Commands
from svcd.supervisor.core import Supervisor
from svcd.supervisor.reloading import Reloader
from svcd.supervisor.upgrading import Upgrader

__all__ = ["Commands", "Reloader", "Supervisor", "Upgrader"]
