"""Faults that the tests have to catch: see `tests.mutants.__main__`."""
