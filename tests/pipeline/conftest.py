"""Makes the fixtures of the tests with real processes available here."""

from tests.pipeline.fixtures import private_server, pytest_runtest_makereport, seed, start_stack

__all__ = ["private_server", "pytest_runtest_makereport", "seed", "start_stack"]
