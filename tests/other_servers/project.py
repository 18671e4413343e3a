"""A Django project of one's own that mounts the relay as the README says, on the servers people run it on."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.processes import ROOT, ServerProcess
from tests.tokens import SECRET_KEY

UVICORN = (
    "uvicorn", "--port", "{port}", "--ws-per-message-deflate", "false", "--ws-max-size", "1048576",
    "--timeout-graceful-shutdown", "10", "--no-proxy-headers", "--log-level", "debug",
)  # fmt: skip
"""The README's command, and all that it can log."""

COMMANDS = {
    "uvicorn": UVICORN,
    "uvicorn, wsproto": (*UVICORN, "--ws", "wsproto"),
    "uvicorn, two workers": (*UVICORN, "--workers", "2"),
    "hypercorn": (
        "hypercorn", "--bind", "127.0.0.1:{port}", "--graceful-timeout", "1", "--log-level", "debug",
        "--access-logfile", "-", "--access-logformat",
        "%(R)s %(q)s %({authorization}i)s %({sec-websocket-protocol}i)s %(s)s",
    ),
    "granian": (
        "granian", "--interface", "asgi", "--port", "{port}", "--log-level", "debug", "--access-log",
        "--access-log-fmt", "%(path)s %(query_string)s %(header{authorization})s %(status)d",
    ),
    "plain daphne": ("daphne", "-p", "{port}", "-v", "2"),
    "our daphne": ("daphne", "-p", "{port}", "-v", "2"),
}  # fmt: skip
"""Each as talkative as it gets, with every part of a request in its access log that it offers."""

SETTINGS = f"""
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]
SECRET_KEY = {SECRET_KEY!r}
ALLOWED_HOSTS = ["*"]
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "channels", "relay"]
ROOT_URLCONF = "own_project.urls"
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": FOLDER / "database.sqlite3"}}}}
CHANNEL_LAYERS = {{"default": {{"BACKEND": "relay.links.memory_layer.MemoryChannelLayer"}}}}
SIMPLE_JWT = {{"SIGNING_KEY": SECRET_KEY}}
RELAY = {{"spool_dir": str(FOLDER / "spool")}}
LOGGING = {{
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {{"stdout": {{"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}}}},
    "loggers": {{"relay.usage": {{"handlers": ["stdout"], "level": "INFO", "propagate": False}}}},
    "root": {{"handlers": ["stdout"], "level": "INFO"}},
}}
"""

URLS = """
from django.urls import include, path

urlpatterns = [path("", include("relay.urls"))]
"""

ASGI = """
from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from relay import routing
{more}
application = ProtocolTypeRouter({{"http": django_application, "websocket": routing.application, {lifespan}}})
"""

LIFESPAN = '"lifespan": routing.lifespan'

INSTALL = "from relay.servers import daphne; daphne.install()"


class Project(ServerProcess):
    """Such a project, served from its server's own command line for the length of a `with` block.

    `lifespan` says if it mounts the relay's. `database` is one that has its tables, to be copied.
    """

    def __init__(self, server: str, folder: Path, database: Path, *, lifespan: bool = True) -> None:
        environ = {
            "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
            "DJANGO_SETTINGS_MODULE": "own_project.settings",
        }
        super().__init__([*COMMANDS[server], "own_project.asgi:application"], folder, environ)
        self.cwd = folder
        self.url = f"ws://{self.host}:{self.port}"
        more = INSTALL if server == "our daphne" else ""
        asgi = ASGI.format(more=more, lifespan=LIFESPAN if lifespan else "")
        write(folder, {"settings": SETTINGS, "urls": URLS, "asgi": asgi})
        shutil.copy(database, folder / "database.sqlite3")

    def kill(self) -> None:
        """End it at once, its workers too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def sessions(self) -> list[dict[str, Any]]:
        """The rows of its sessions."""
        with contextlib.closing(sqlite3.connect(self.folder / "database.sqlite3")) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM relay_relaysession")]

    def written(self) -> dict[str, bytes]:
        """All that it has left in its folder but its own code: output, database, spool."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in files if path.suffix not in (".py", ".pyc")}


def write(folder: Path, modules: dict[str, str]) -> None:
    """Make the package of the project."""
    package = folder / "own_project"
    package.mkdir(parents=True)
    for name, text in {"__init__": "", **modules}.items():
        (package / f"{name}.py").write_text(text)


def migrated(folder: Path) -> Path:
    """A database with the relay's tables, made by the project's own `migrate`."""
    write(folder, {"settings": SETTINGS, "urls": URLS})
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    command = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
    command += ["--settings", "own_project.settings"]
    subprocess.run(command, cwd=folder, env=environ, timeout=60, check=True)
    return folder / "database.sqlite3"
