"""What every test runs under, and the stores that tests share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings

from tests.support.servers import Server
from tests.support.stores import SERVERS, missing, must_run

# Shared machines stall now and then: a slow example is no failure, a slow suite is pytest-timeout's to end.
settings.register_profile("keepgate", deadline=None)
settings.register_profile("full", deadline=None)  # as many examples as the tests say: `make test-full`
settings.register_profile("thorough", deadline=None, max_examples=5_000)
settings.load_profile("keepgate")


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """A running store by its name in `tests.support.stores.SERVERS`, started when it is first asked for.

    Tests share it: each has names of its own in there. One that is not
    installed skips the test, or fails it where `REQUIRE_BACKENDS` or `CI` is set.
    """
    started: dict[str, Server] = {}
    with ExitStack() as running:

        def server(name: str) -> Server:
            if name not in started:
                if lacking := missing(name):
                    reason = f"{name} cannot be started without {lacking[0]}: `make test` installs it"
                    (pytest.fail if must_run() else pytest.skip)(reason)
                started[name] = running.enter_context(SERVERS[name][0](tmp_path_factory.mktemp(name)))
            return started[name]

        yield server
