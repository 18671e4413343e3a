"""Usage tests run on both databases."""

from tests.databases import _migrated, database, postgres

__all__ = ["_migrated", "database", "postgres"]
