"""`daphne tests.servers.stock:application`: the application on Daphne as it comes."""

from tests.servers.applications import application

__all__ = ["application"]
