"""Fixtures of the data tests."""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import pytest


@pytest.fixture(autouse=True, scope="session")
def own_datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """``datasets`` keeps what it reads in a folder of the test session, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield
