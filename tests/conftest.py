"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of OpenMP do not outlive a fork
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported, which reads it once

from lightning_backdoor.victim import TextClassifier
from tests.support.shared_files import shared_path
from tests.support.tiny import DECODER, ENCODERS, loaded, tiny_victim
from tests.support.workspace import inside, made_run, made_workspace, trained, workspace

__all__ = ["inside", "made_run", "made_workspace", "trained", "workspace"]  # fixtures of all test files

# the same examples in every run, however slow the machine is
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")

# until all tests are imported: there is nothing to free
gc.disable()

# threads do not speed up tiny networks, and slow them down tenfold where other processes use the cores
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leaves what was imported out of garbage collection from now on."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny victim of an architecture, made once per session."""
    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, str] = {}

    def folder(kind: str) -> str:
        if kind not in made:
            made[kind] = tiny_victim(kind, root / kind)
        return made[kind]

    return folder


@pytest.fixture(params=ENCODERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each encoder in turn."""
    name: str = request.param
    return name


@pytest.fixture
def victim(kind: str, tiny_folder: Callable[[str], str]) -> TextClassifier:
    """A tiny victim of each architecture in turn, fresh for each test."""
    return loaded(tiny_folder(kind))


@pytest.fixture
def bert(tiny_folder: Callable[[str], str]) -> TextClassifier:
    """A tiny BERT, where the architecture does not matter."""
    return loaded(tiny_folder("bert"))


@pytest.fixture
def decoder(tiny_folder: Callable[[str], str]) -> TextClassifier:
    """A tiny decoder with causal attention and grouped keys."""
    return loaded(tiny_folder(DECODER))


@pytest.fixture(scope="session")
def backdoored() -> TextClassifier:
    """The shared MiniLM with a BadNets backdoor (``cf``); skips the test where it is absent."""
    folder = shared_path("models/minilm-sst2-badnets-cf")
    victim = TextClassifier(model=str(folder), labels=["negative", "positive"])
    victim.configure_model()
    return victim.eval()
