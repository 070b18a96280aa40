"""A pytest plugin: of the tests collected, every n-th, so that n processes share them.

TEST_SHARD=0/8 python -m pytest -p shard ...; with nothing to install, unlike pytest-xdist.
"""

import os
import signal


def pytest_configure() -> None:
    # a shell's background processes ignore interrupts, after which pytest says what failed so far
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items: list) -> None:
    index, count = map(int, os.environ.get("TEST_SHARD", "0/1").split("/"))
    others = items[:]
    del others[index::count]
    config.hook.pytest_deselected(items=others)
    items[:] = items[index::count]
