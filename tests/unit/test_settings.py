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


MIB = 1024 * 1024

BOUNDS = {
    # Least and most that is taken, and what is just outside; None where there is no bound.
    "SESSION_TIMEOUT": (0.001, 0, None, None),
    "RELAY_MAX_SESSION_SECONDS": (0.001, 0, None, None),
    "RELAY_MAX_MESSAGE_BYTES": (125, 124, 256 * MIB, 256 * MIB + 1),
    "RELAY_PENDING_BYTES": (0, -1, 16 * MIB, 16 * MIB + 1),
    "RELAY_MAX_TOKEN_BYTES": (256, 255, 65_536, 65_537),
    "RELAY_READ_LOW_BYTES": (0, -1, 256 * 1024, 256 * 1024 + 1),
    "RELAY_WRITE_LOW_BYTES": (0, -1, 64 * 1024, 64 * 1024 + 1),
    "RELAY_ADMIT_SECONDS": (0.001, 0, None, None),
    "RELAY_STALL_SECONDS": (0.001, 0, None, None),
    "RELAY_CLOSE_SECONDS": (0.001, 0, None, None),
    "RELAY_DRAIN_SECONDS": (0.001, 0, None, None),
    "RELAY_NODE_SECONDS": (1, 0.999, None, None),
    "RELAY_LINK_SECONDS": (1, 0.999, 29.999, 30),
    "RELAY_LINK_WINDOW_BYTES": (65_536, 65_535, 64 * MIB, 64 * MIB + 1),
    "RELAY_LINK_BATCH_BYTES": (1024, 1023, 64 * MIB, 64 * MIB + 1),
    "RELAY_CHECKPOINT_SECONDS": (0.1, 0.099, 29.999, 30),
    "RELAY_LEDGER_BATCH_SECONDS": (0, -0.001, 10, 10.001),
    "RELAY_LEDGER_EXIT_SECONDS": (0, -0.001, 300, 300.001),
    "RELAY_LEDGER_WRITE_SECONDS": (0.001, 0, 300, 300.001),
    "RELAY_SPOOL_BYTES": (65_536, 65_535, None, None),
    "RELAY_NODE_LOST_SECONDS": (30.001, 30, None, None),
    "RELAY_KEEP_USAGE_DAYS": (1, 0.999, None, None),
    "RELAY_ADMIN_EXPORT_ROWS": (1, 0, 1_000_000, 1_000_001),
    "RELAY_JWT_LEEWAY_SECONDS": (0, -0.001, 300, 300.001),
    "PORT": (0, -1, 65_535, 65_536),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_value_is_taken_up_to_its_bounds_and_no_further(name, tmp_path):
    least, too_little, most, too_much = BOUNDS[name]
    for good in (least, most):
        if good is not None:
            env, settings = read({name: str(good)}, tmp_path)
            found = {field.alias: getattr(env, name) for name, field in type(env).model_fields.items()} | {
                field.alias: getattr(settings, name) for name, field in RelaySettings.model_fields.items()
            }
            assert found[name] == good
    for bad in (too_little, too_much):
        if bad is not None:
            with pytest.raises(SettingError, match="RELAY_" if name.startswith("RELAY_") else name):
                read({name: str(bad)}, tmp_path)


def test_a_checkpoint_may_be_an_hour_where_a_node_may_be_silent_for_longer(tmp_path):
    given = {"RELAY_CHECKPOINT_SECONDS": "3600", "RELAY_NODE_LOST_SECONDS": "7201"}
    assert read(given, tmp_path)[1].checkpoint_seconds == 3600
    with pytest.raises(SettingError, match="RELAY_CHECKPOINT_SECONDS"):
        read({**given, "RELAY_CHECKPOINT_SECONDS": "3600.5", "RELAY_NODE_LOST_SECONDS": "9000"}, tmp_path)


def test_proxies_that_are_no_networks_are_an_error(tmp_path):
    assert read({"RELAY_TRUSTED_PROXIES": "10.0.0.0/8, ::1"}, tmp_path)[1].trusted_proxies
    with pytest.raises(SettingError, match=r"RELAY_TRUSTED_PROXIES: got '10.0.0.1/8'; expected addresses"):
        read({"RELAY_TRUSTED_PROXIES": "10.0.0.1/8"}, tmp_path)


def test_an_unknown_variable_that_is_like_none_leads_to_the_table(tmp_path):
    with pytest.raises(SettingError, match="RELAY_0123456789_0123456789: no such setting; see the README"):
        read({"RELAY_0123456789_0123456789": "3"}, tmp_path)


def test_settings_that_are_in_force_cannot_be_changed(tmp_path):
    env, settings = read({}, tmp_path)
    for given, name in ((env, "port"), (settings, "session_timeout")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(given, name, 5)


def test_a_folder_for_data_that_cannot_be_made_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"^RELAY_VAR_DIR: .*expected a folder that can be written to$"):
        environment.read({"RELAY_VAR_DIR": str(tmp_path / "file" / "var")}, ROOT)


def test_a_folder_for_data_is_beside_the_project_unless_it_is_an_absolute_path(tmp_path):
    assert environment.read({"RELAY_VAR_DIR": "data"}, tmp_path).var_dir == tmp_path / "data"
    assert (tmp_path / "data" / "secret_key").exists()


def test_of_two_processes_that_make_a_secret_key_the_first_ones_counts(tmp_path, monkeypatch):
    link = os.link

    def another_was_first(draft, path):
        path.write_text("the other one's")
        link(draft, path)

    monkeypatch.setattr(os, "link", another_was_first)
    assert environment.read({"RELAY_VAR_DIR": str(tmp_path)}, ROOT).secret_key == "the other one's"
    assert [path.name for path in tmp_path.iterdir()] == ["secret_key"]


def test_a_secret_key_is_never_to_be_read_by_others_not_even_while_it_is_made(tmp_path, monkeypatch):
    link, modes = os.link, []

    def looked_at(draft, path):
        modes.append(draft.stat().st_mode & 0o777)
        link(draft, path)

    monkeypatch.setattr(os, "link", looked_at)
    environment.read({"RELAY_VAR_DIR": str(tmp_path)}, ROOT)
    assert modes == [0o600]


def test_a_postgresql_that_does_not_answer_is_not_waited_for_for_ever(tmp_path):
    def options(url):
        return read({"DATABASE_URL": url}, tmp_path)[0].database["OPTIONS"]

    assert options("postgres://u@h/n")["connect_timeout"] == 5
    assert options("postgres://u@h/n?connect_timeout=9")["connect_timeout"] in (9, "9")


def test_hosts_are_a_list_with_commas(tmp_path):
    assert read({"ALLOWED_HOSTS": "a.example, b.example,"}, tmp_path)[0].allowed_hosts == [
        *("a.example", "b.example")
    ]
