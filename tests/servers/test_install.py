"""The server is in force wherever Daphne is started from."""

import json
import subprocess
import sys

from tests.processes import DEADLINE, ROOT, ServerProcess
from tests.servers.conftest import SMALL, get


def test_plain_daphne_listens_on_the_port_of_the_environment(tmp_path):
    server = ServerProcess(["daphne", "tests.servers.ours:application"], tmp_path, SMALL)
    server.environ["PORT"] = str(server.port)
    with server:
        assert get(server, "/").status_code == 200
        assert "with flow control" in server.stderr


def test_runserver_has_it_too(tmp_path):
    server = ServerProcess([], tmp_path, SMALL)
    migrate = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
    subprocess.run(migrate, cwd=ROOT, env=server.environ, check=True, timeout=DEADLINE)
    server.command = [sys.executable, "manage.py", "runserver", "--noreload", str(server.port)]
    with server:
        assert get(server, "/health").status_code == 200
        last = json.loads(server.stdout.splitlines()[-1])
        assert (last["event"], last["path"]) == ("http_request", "/health")
