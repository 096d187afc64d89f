"""What the tests of several ranks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.groups import RankGroups


@pytest.fixture(scope="session")
def rank_groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroups]:
    groups = RankGroups(tmp_path_factory.mktemp("ranks"))
    try:
        yield groups
    finally:
        groups.close()
