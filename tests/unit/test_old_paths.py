"""What projects import and name in their settings goes on working where it was."""

import importlib

import pytest
from django.db.migrations.writer import MigrationWriter

from relay import models


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("relay.layers", "relay.links.memory_layer", "MemoryChannelLayer"),
        ("relay.forwarded", "relay.entry.forwarded", "ForwardedMiddleware"),
        ("relay.servers.daphne", "relay.servers.daphne.server", "RelayServer"),
        ("relay.sessions", "relay.sessions.service", "CLOSE_EVENT"),
        ("relay.sessions", "relay.sessions.service", "group_name"),
    ],
)
def test_what_was_imported_from_an_old_path_is_the_same(old, new, name):
    assert getattr(importlib.import_module(old), name) is getattr(importlib.import_module(new), name)


def test_a_new_close_reason_makes_no_migration():
    """A migration names the function that lists them."""
    field = models.RelaySession._meta.get_field("reason")
    _, _, _, options = field.deconstruct()
    assert MigrationWriter.serialize(options["choices"])[0] == "relay.models.close_reasons"
    assert ("peer_left", "peer_left") in field.choices
