"""Daphne with flow control both ways, faithful frames and closes, and a drain on SIGTERM.

Plain Daphne has an unbounded queue to the application and an unbounded send buffer, drops empty frames
and close reasons, refuses most close codes, and lets every connection fall at SIGTERM. `install` puts
`RelayServer` in its place, so that the plain `daphne` command has none of that.
"""

import daphne.cli
import daphne.server
from daphne.management.commands import runserver

from relay.servers.daphne.server import RelayServer

__all__ = ["RelayServer", "install"]


def install(*, default_port: int | None = None) -> None:
    """Make `daphne` and `manage.py runserver` use `RelayServer`; listen on `default_port` unless told a port.

    Daphne's command line looks both up after it has imported the application, so the application's module
    is the place to call this from. `runserver` looks before that: call it when Django is set up.
    """
    daphne.cli.CommandLineInterface.server_class = RelayServer
    runserver.Command.server_cls = RelayServer
    if default_port is not None:
        daphne.cli.DEFAULT_PORT = default_port
