"""Makes the fixtures of the tests with real processes available here, and those of the faults."""

from tests.faults.tmpfs import small_disk
from tests.pipeline.fixtures import private_server, pytest_runtest_makereport, seed, start_stack

__all__ = ["private_server", "pytest_runtest_makereport", "seed", "small_disk", "start_stack"]
