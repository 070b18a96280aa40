"""What the tests of tools share."""

import pytest


@pytest.fixture(scope="session")
def known(tmp_path_factory):
    """See `known_cases.known_cases`."""
    for library in ("mmdet", "mmseg", "mmpretrain"):
        pytest.importorskip(library)
    from known_cases import known_cases

    return known_cases(tmp_path_factory.mktemp)
