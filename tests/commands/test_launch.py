"""What is checked and said before processes are started."""

from __future__ import annotations

import os

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from lightning_backdoor.commands.launch import check_cores, waiting_text
from lightning_backdoor.errors import InputError


def test_more_processes_than_cores_are_refused_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    check_cores("devices", torch.device("cpu"), 4)
    check_cores("devices", torch.device("cuda"), 8)
    with pytest.raises(InputError, match=r"^devices: 5 processes are more than the 4 cores of this machine; give at"):
        check_cores("devices", torch.device("cpu"), 5)


def test_it_is_said_which_machines_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "2345")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    said = waiting_text(LightningEnvironment(), 2)
    assert said.startswith("waiting for 2 machines at node1:2345: start the same command on each")
    assert said.count("\n") == 1
    assert waiting_text(LightningEnvironment(), 1) == ""
    assert waiting_text(TorchElasticEnvironment(), 2) == ""
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert waiting_text(LightningEnvironment(), 2) == ""
