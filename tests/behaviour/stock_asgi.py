"""The project on plain Daphne, as in a project that forgot to install the relay's server."""

import daphne.cli
import daphne.server

from lemcloud.asgi import application

daphne.cli.CommandLineInterface.server_class = daphne.server.Server

__all__ = ["application"]
