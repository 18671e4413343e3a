"""Each setting is typed, bounded and documented, and a bad value says in one line what to do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lemcloud import environment
from relay import conf
from relay.conf import RelaySettings, SettingError

ROOT = Path(__file__).resolve().parents[2]

MALFORMED = {
    "SESSION_TIMEOUT": ["abc", "0", "-1", "nan", "inf"],
    "PORT": ["http", "-1", "65536", "80.5"],
    "DEBUG": ["perhaps"],
    "REDIS_URL": ["localhost", "http://x"],
    "DATABASE_URL": ["nonsense", "mysql://x/y", "postgres://h:port/x"],
    "RELAY_MAX_MESSAGE_BYTES": ["1", "1e9", "1 MiB"],
    "RELAY_READ_LOW_BYTES": ["999999999"],
    "RELAY_WRITE_LOW_BYTES": ["999999999"],
    "RELAY_JWT_ALGORITHM": ["none", "HS1"],
    "RELAY_JWT_PUBLIC_KEY_FILE": ["/nowhere/key.pem"],
}


def read(environ: dict[str, str], tmp_path: Path) -> tuple[environment.Environment, RelaySettings]:
    environ = {"RELAY_VAR_DIR": str(tmp_path), **environ}
    return environment.read(environ, ROOT), conf.from_environment(environ, environment.VARIABLES)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in MALFORMED.items() for v in values])
def test_a_malformed_value_names_the_variable_and_what_is_expected(name, value, tmp_path):
    with pytest.raises(SettingError) as caught:
        read({name: value}, tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert "\n" not in text
    if name not in environment.SECRETS:
        assert value in text


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL"])
def test_an_error_never_repeats_a_password(name, tmp_path):
    with pytest.raises(SettingError) as caught:
        read({name: "mysql://user:hunter2@host/db"}, tmp_path)
    assert "hunter2" not in str(caught.value)


def test_a_malformed_value_ends_the_start_with_one_line(tmp_path):
    environ = {**os.environ, "RELAY_VAR_DIR": str(tmp_path), "SESSION_TIMEOUT": "soon"}
    ended = subprocess.run(
        [sys.executable, "-m", "daphne", "lemcloud.asgi:application"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == "lem-relay: SESSION_TIMEOUT: got 'soon'; expected a valid number\n"


def test_an_unknown_relay_variable_is_an_error_that_suggests_the_right_one(tmp_path):
    with pytest.raises(
        SettingError, match="RELAY_STAL_SECONDS: no such setting; did you mean RELAY_STALL_SEC"
    ):
        read({"RELAY_STAL_SECONDS": "3"}, tmp_path)


def test_the_client_s_variables_do_not_stop_the_server_s_commands(tmp_path):
    """The README sets `RELAY_TOKEN` in a terminal, where the next token may be issued later."""
    read({"RELAY_URL": "ws://relay", "RELAY_TOKEN": "one", "RELAY_VOUCHING_TOKEN": "another"}, tmp_path)


def test_an_empty_variable_counts_as_not_set(tmp_path):
    env, settings = read({"PORT": "", "REDIS_URL": "", "SESSION_TIMEOUT": ""}, tmp_path)
    assert (env.port, env.redis_url, settings.session_timeout) == (8001, "", 300)


def test_without_anything_set_it_is_one_process_with_sqlite(tmp_path):
    env, _ = read({}, tmp_path)
    assert env.database["ENGINE"] == "django.db.backends.sqlite3"
    assert env.database["NAME"] == str(tmp_path / "relay.sqlite3")
    assert not env.debug
    assert env.port == 8001


def test_the_secret_key_is_made_once_and_only_the_owner_can_read_it(tmp_path):
    first, _ = read({}, tmp_path)
    again, _ = read({}, tmp_path)
    assert first.secret_key == again.secret_key
    assert len(first.secret_key) >= 50
    assert (tmp_path / "secret_key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret_key"]


def test_a_secret_key_that_is_set_leaves_no_file(tmp_path):
    env, _ = read({"SECRET_KEY": "k" * 50}, tmp_path)
    assert env.secret_key == "k" * 50
    assert not list(tmp_path.iterdir())


def test_asymmetric_tokens_need_a_public_key(tmp_path):
    with pytest.raises(SettingError, match=r"RELAY_JWT_PUBLIC_KEY_FILE: not set; .* RS256"):
        read({"RELAY_JWT_ALGORITHM": "RS256"}, tmp_path)


def test_a_postgres_url_is_understood(tmp_path):
    env, _ = read({"DATABASE_URL": "postgres://u:p@h:5433/n"}, tmp_path)
    assert env.database["ENGINE"] == "django.db.backends.postgresql"
    assert (env.database["HOST"], env.database["PORT"], env.database["NAME"]) == ("h", 5433, "n")


def test_settings_may_also_be_given_as_a_dict_of_fields():
    assert conf.build({"session_timeout": 5}).session_timeout == 5
    with pytest.raises(SettingError, match="SESSION_TIMEOUT: got 'x'"):
        conf.build({"session_timeout": "x"})
    with pytest.raises(SettingError, match="session_timout"):
        conf.build({"session_timout": 5})


def documented() -> dict[str, str]:
    """The README's table: variable to default."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", readme, re.MULTILINE)
    return {name: default.strip("` ") for name, default in rows}


def test_the_readme_documents_each_setting_and_no_other():
    fields = [*RelaySettings.model_fields.values(), *environment.Environment.model_fields.values()]
    assert set(documented()) == {field.alias for field in fields}


def test_the_readme_gives_the_defaults_that_are_in_force():
    for field in RelaySettings.model_fields.values():
        assert documented()[field.alias] == str(field.default)
