"""A Django project of one's own that mounts the relay as the README says, on the servers people run it on."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.processes import ROOT, ServerProcess
from tests.tokens import SECRET_KEY

UVICORN = (
    "uvicorn", "--port", "{port}", "--ws-per-message-deflate", "false", "--ws-max-size", "1048576",
    "--timeout-graceful-shutdown", "10", "--no-proxy-headers",
)  # fmt: skip
"""The README's command."""

APPLICATION = "platform_project.asgi:application"

COMMANDS = {
    "uvicorn": (*UVICORN, APPLICATION),
    "uvicorn, wsproto": (*UVICORN, "--ws", "wsproto", APPLICATION),
    "uvicorn, two workers": (*UVICORN, "--workers", "2", APPLICATION),
    "hypercorn": ("hypercorn", "--bind", "127.0.0.1:{port}", "--graceful-timeout", "1", APPLICATION),
    "granian": ("granian", "--interface", "asgi", "--port", "{port}", APPLICATION),
    "daphne": ("daphne", "-p", "{port}", APPLICATION),
}

SETTINGS = """
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]
SECRET_KEY = {secret_key!r}
ALLOWED_HOSTS = ["*"]
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "channels", "relay"]
ROOT_URLCONF = "platform_project.urls"
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": FOLDER / "database.sqlite3"}}}}
CHANNEL_LAYERS = {{"default": {{"BACKEND": "relay.layers.MemoryChannelLayer"}}}}
SIMPLE_JWT = {{"SIGNING_KEY": SECRET_KEY}}
RELAY = {{"spool_dir": str(FOLDER / "spool")}}
LOGGING = {{
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {{"stdout": {{"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}}}},
    "loggers": {{"relay.usage": {{"handlers": ["stdout"], "level": "INFO", "propagate": False}}}},
}}
"""

URLS = """
from django.urls import include, path

urlpatterns = [path("", include("relay.urls"))]
"""

ASGI = """
import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "platform_project.settings")

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from relay.routing import application as relay_application
{imports}
application = ProtocolTypeRouter({{"http": django_application, "websocket": relay_application, {mounts}}})
"""

MOUNTED = {"imports": "from relay.routing import lifespan", "mounts": '"lifespan": lifespan'}
NOT_MOUNTED = {"imports": "", "mounts": ""}


class Project(ServerProcess):
    """Such a project, served from its server's own command line for the length of a `with` block.

    `settings` is Python that stands at the end of its settings; `lifespan` says if it mounts the relay's.
    """

    def __init__(
        self,
        server: str,
        folder: Path,
        *,
        lifespan: bool = True,
        settings: str = "",
        options: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        *command, application = COMMANDS[server]
        path = os.pathsep.join((str(folder), str(ROOT)))
        super().__init__(
            [*command, *options, application],
            folder,
            {"PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "platform_project.settings", **(environ or {})},
        )
        self.cwd = folder
        self.url = f"ws://{self.host}:{self.port}"
        package = folder / "platform_project"
        package.mkdir(parents=True)
        for name, text in {
            "__init__": "",
            "settings": SETTINGS.format(secret_key=SECRET_KEY) + settings,
            "urls": URLS,
            "asgi": ASGI.format(**(MOUNTED if lifespan else NOT_MOUNTED)),
        }.items():
            (package / f"{name}.py").write_text(text)
        self.manage("migrate", "--verbosity", "0")

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of its management commands."""
        return subprocess.run(
            [sys.executable, "-m", "django", *arguments],
            cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip

    def kill(self) -> None:
        """End it at once, its workers too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def sessions(self) -> dict[str, dict[str, Any]]:
        """The rows of its sessions, by session id."""
        with contextlib.closing(sqlite3.connect(self.folder / "database.sqlite3")) as connection:
            connection.row_factory = sqlite3.Row
            rows = connection.execute("SELECT * FROM relay_relaysession").fetchall()
        return {row["session_id"]: dict(row) for row in rows}
