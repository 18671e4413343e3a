"""docker-compose.yml is valid and keeps its promises. The schema check stands in for `docker compose config`,
which needs a plugin that isn't everywhere."""

import re
import shlex
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import redis
import yaml

from lemcloud.environment import VARIABLES, Environment
from relay.conf import RelaySettings, from_environment
from tests.databases import Valkey

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def test_the_compose_file_follows_the_compose_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run(
        [*command, ROOT / "docker-compose.yml"], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_each_service_has_a_health_check_and_comes_back_after_a_crash(compose):
    for name, service in compose["services"].items():
        if name == "migrate":  # it ends, and the nodes wait until it has done so well
            assert service["restart"] == "on-failure"
            continue
        assert service["healthcheck"]["test"], name
        assert service["restart"] == "unless-stopped", name


def test_a_node_starts_when_the_tables_are_there_and_both_stores_answer(compose):
    conditions = {
        name: need["condition"] for name, need in compose["services"]["relay"]["depends_on"].items()
    }
    assert conditions == {
        "migrate": "service_completed_successfully",
        "postgres": "service_healthy",
        "valkey": "service_healthy",
    }


def test_there_are_two_nodes_and_caddy_knows_each_by_the_name_that_compose_gives_it(compose):
    given = compose["services"]["caddy"]["environment"]["RELAY_NODES"]
    known = given.removeprefix("${RELAY_NODES:-").removesuffix("}").split()
    assert known == [f"{compose['name']}-relay-{number}:8001" for number in range(1, 5)]
    assert 2 <= compose["services"]["relay"]["scale"] <= len(known)
    assert "container_name" not in compose["services"]["relay"]


def test_the_nodes_believe_caddy_and_nobody_else_and_only_caddy_can_be_reached(compose):
    services = compose["services"]
    caddy = services["caddy"]["networks"]["balanced"]["ipv4_address"]
    assert services["relay"]["environment"]["RELAY_TRUSTED_PROXIES"] == caddy
    (pool,) = compose["networks"]["balanced"]["ipam"]["config"]
    assert ip_address(caddy) in ip_network(pool["subnet"])
    assert ip_address(caddy) not in ip_network(pool["ip_range"]), "a node could get it first"
    assert [name for name, service in services.items() if "ports" in service] == ["caddy"]


def test_caddy_runs_the_file_that_the_tests_run(compose):
    (mounted,) = [volume for volume in compose["services"]["caddy"]["volumes"] if "Caddyfile" in volume]
    assert mounted.split(":")[0] == "./lemcloud/deploy/balancers/Caddyfile"
    assert (ROOT / mounted.split(":")[0]).exists()


def test_the_settings_that_the_nodes_are_given_are_good_ones(compose):
    given = {
        name: re.sub(r"\$\{[A-Z_]+:([?-])([^}]*)\}", lambda m: m[2] if m[1] == "-" else "x" * 40, value)
        for name, value in compose["services"]["relay"]["environment"].items()
    }
    environ = {name: value for name, value in given.items() if value}
    assert from_environment(environ, known=VARIABLES).redis_url
    fields = {str(field.alias) for field in RelaySettings.model_fields.values()}
    assert environ.keys() <= fields | {str(field.alias) for field in Environment.model_fields.values()}


def test_the_nodes_are_killed_after_they_have_drained(compose):
    grace = compose["services"]["relay"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > RelaySettings().drain_seconds


def test_valkey_runs_the_file_that_the_tests_run_and_not_as_root(compose):
    service = compose["services"]["valkey"]
    (mounted,) = service["volumes"]
    source, target, _ = mounted.split(":")
    assert ROOT / source == Valkey.config
    (words,) = re.findall(r"^sh -c 'exec valkey-server (.*)'$", service["command"])
    assert shlex.split(words) == [target, "--requirepass", "$$VALKEY_PASSWORD"]
    assert service["user"] == "valkey"


def test_valkey_holds_what_waits_for_a_node_that_is_behind(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        limits = client.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
        assert client.config_get("save") == {"save": ""}
    (hard,) = re.findall(r"pubsub (\d+)", limits)
    assert int(hard) >= 500 * RelaySettings().link_window_bytes


def test_what_nodes_keep_on_disk_outlives_their_containers(compose):
    assert compose["services"]["relay"]["volumes"] == ["relay-var:/app/var"]
    assert "relay-var" in compose["volumes"]


def test_no_password_has_a_default(compose):
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    for name in ("SECRET_KEY", "POSTGRES_PASSWORD", "VALKEY_PASSWORD"):
        assert f"${{{name}:?" in text
        assert f"${{{name}:-" not in text
        assert f"${{{name}}}" not in text


def test_each_variable_of_the_compose_file_is_in_the_example(compose):
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    assert used == {line.partition("=")[0] for line in lines if line and not line.startswith("#")}


def test_the_relay_does_not_run_as_root(compose):
    for name in ("relay", "migrate"):
        assert "USER relay" in compose["services"][name]["build"]["dockerfile_inline"]
