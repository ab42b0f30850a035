"""Makes the fixtures of the tests with real processes available here."""

from tests.pipeline.fixtures import pytest_runtest_makereport, start_stack

__all__ = ["pytest_runtest_makereport", "start_stack"]
