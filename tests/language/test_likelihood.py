"""Log-probabilities computed from hidden states in chunks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lightning_backdoor.language import likelihood
from lightning_backdoor.language.likelihood import log_probabilities, plain_inference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "bias"])
@pytest.mark.parametrize("at_once", [1, 6, 100])
def test_chunks_give_the_log_probabilities_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kind: str, at_once: int
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 11, bias=kind == "bias", dtype=dtype)
    hidden, targets = torch.randn(20, 8).to(dtype), torch.randint(11, (23,))
    positions = torch.tensor([0, 0, 0, *range(2, 20), 19, 19])
    monkeypatch.setattr(likelihood, "logits_at_once", lambda head, device: at_once)
    buffers: list[torch.Tensor] = []
    with torch.inference_mode():
        expected = head(hidden).float().log_softmax(dim=-1)[positions, targets]
        for _ in range(2):
            given = log_probabilities(head, hidden, positions, targets, buffers)
            torch.testing.assert_close(given, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
        nothing = log_probabilities(head, hidden, positions[:0], targets[:0], buffers)
    assert nothing.shape == (0,)
    assert len(buffers) == 1


def test_threads_leave_the_settings_of_the_process_as_they_were() -> None:
    """The second block begins within the first and ends after it, as in passes of several threads."""
    first, second = (plain_inference(torch.device("cpu")) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            one.submit(first.__enter__).result()
            other.submit(second.__enter__).result()
            one.submit(first.__exit__, None, None, None).result()
            assert torch.get_float32_matmul_precision() == "highest"
            other.submit(second.__exit__, None, None, None).result()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
