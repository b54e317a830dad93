"""Tests that need a GPU: what it computes equals the processor's results, in little memory and in every precision.

They need no model and no text that is not in this repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, Trainer, seed_everything
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForSequenceClassification, LlamaConfig

from lightning_backdoor import defenses
from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.callbacks import (
    ABL,
    BTU,
    GradientAttentionDefense,
    InferenceDefense,
    LowCapacity,
    ModerateFitting,
    MuScleLoRA,
    OutputFolder,
)
from lightning_backdoor.callbacks.shared import own_random_numbers
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses import (
    LCF,
    BadActs,
    Dan,
    Defense,
    Dup,
    GradientAttention,
    Onion,
    Strip,
    SubstitutionVoting,
)
from lightning_backdoor.defenses.attention_capture import attention_and_gradient
from lightning_backdoor.files.public_classes import public_classes
from lightning_backdoor.language import Perplexity
from lightning_backdoor.models import auto_precision
from lightning_backdoor.testing import check_defense
from lightning_backdoor.victim import TextClassifier
from tests.callbacks.test_repairs import REPAIRS, data, fitted, make
from tests.support.reviews import reviews
from tests.support.tiny import DECODER, SENTENCES, loaded
from tests.support.workspace import command
from tests.testing.test_every_defense import ARGUMENTS

DEVICE = "cuda"
LABELS = ["negative", "positive"]
__all__ = ["data", "make"]  # fixtures
#: names of the defenses that act without a fit.
DEFENSES = {item.name for item in public_classes() if item.kind == "defenses" and ".defenses" in item.module}
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def language_model(tiny_folder: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny causal language model."""
    folder = tmp_path_factory.mktemp("language_model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(DECODER))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **ids, initializer_range=0.3)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def float32_products() -> Iterator[None]:
    """Products of matrices in full float32, whatever an earlier test has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def batch_on(device: str, victim: TextClassifier) -> Batch:
    batch: Batch = move_data_to_device(
        batch_of_texts(list(SENTENCES), victim.tokenizer, victim.max_length), torch.device(device)
    )
    return batch


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_a_victim_is_hardened_and_tested_on_a_gpu(
    tmp_path: Path, tiny_folder: Callable[[str], str], language_model: str, precision: str
) -> None:
    seed_everything(0, verbose=False)
    attack = BadNets(model=tiny_folder("bert"), learning_rate=1e-2)
    hardened = MuScleLoRA(lora_rank=2, lora_alpha=4, radial_scalings=[1, 2], reference_size=4, min_reference_loss=0.0)
    onion = Onion(language_model=language_model, cache_dir=str(tmp_path / "cache"))
    trainer = Trainer(
        accelerator="gpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[
            hardened,
            GradientAttentionDefense(),
            InferenceDefense(Strip(), name="strip"),
            InferenceDefense(onion, name="onion"),
            OutputFolder(tmp_path),
        ],
    )
    data = reviews(tmp_path)
    trainer.fit(attack, datamodule=data)
    assert all(parameter.isfinite().all() for parameter in attack.parameters())
    trainer.test(attack, datamodule=data, verbose=False)
    for name in ("", "strip/", "onion/"):
        assert trainer.callback_metrics[f"test/{name}auroc"].isfinite()


def test_a_trained_victim_gives_the_same_rates_on_a_gpu_as_on_the_processor(
    tmp_path: Path, tiny_folder: Callable[[str], str], float32_products: None
) -> None:
    """Rows whose score ties with a threshold may be flagged on one side alone; rates of the victim may not differ."""
    metrics: dict[str, dict[str, float]] = {}
    attack = BadNets(model=tiny_folder("bert"), learning_rate=1e-2, labels=LABELS)
    data = reviews(tmp_path)
    for accelerator in ("gpu", "cpu"):
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[InferenceDefense(GradientAttention())],
        )
        if not metrics:
            trainer.fit(attack, datamodule=data)
        trainer.test(attack, datamodule=data, verbose=False)
        metrics[accelerator] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["gpu"].keys() == metrics["cpu"].keys()
    for name, value in metrics["cpu"].items():
        defended = name not in ("test/cacc", "test/asr", "test/pacc", "test/asr_floor")
        if name != "test/overhead":  # a ratio of times
            expected = pytest.approx(value, abs=0.05 if defended else 1e-6, nan_ok=True)  # no such rows: no rate
            assert metrics["gpu"][name] == expected, name


@pytest.mark.parametrize("name", sorted(DEFENSES - {"Onion", "ParaphraseConsistency"}))
def test_a_defense_keeps_the_contract_on_a_gpu(name: str, language_model: str) -> None:
    arguments = dict(ARGUMENTS.get(name, {}))
    if "encoder" in arguments:
        arguments["encoder"] = language_model
    check_defense(getattr(defenses, name)(**arguments), device=DEVICE)


class Draws(Strip):
    """A defense that draws from the generator of the GPU."""

    def score(self, victim: Any, batch: Batch) -> Any:
        torch.rand(1, device=DEVICE)
        return super().score(victim, batch)


def test_a_draw_from_the_generator_of_the_gpu_is_told() -> None:
    with pytest.raises(AssertionError, match="score: draws from a global random generator"):
        check_defense(Draws(), device=DEVICE)


@pytest.mark.parametrize("name", REPAIRS)
def test_a_repair_decides_on_a_gpu_as_on_the_processor(
    name: str, tmp_path: Path, data: BackdoorDataModule, make: Callable[..., TextClassifier], float32_products: None
) -> None:
    decisions = []
    for accelerator in ("gpu", "cpu"):
        repair, victim = REPAIRS[name](), make()
        fitted(tmp_path, victim, data, repair, accelerator=accelerator, devices=1)
        assert all(parameter.isfinite().all() for parameter in victim.parameters())
        decisions.append(dict(repair.decided or {}))
    on_gpu, on_processor = decisions
    # shares within rounding, the rest exactly
    shares = "coefficients"
    assert on_gpu.pop(shares, []) == pytest.approx(on_processor.pop(shares, []), rel=1e-5)
    assert on_gpu == on_processor


@pytest.mark.parametrize("defense", [ABL(turning_point=0.5), BTU(), LowCapacity("adapter", 2), ModerateFitting()])
def test_a_defense_in_training_runs_on_a_gpu(
    tmp_path: Path, tiny_folder: Callable[[str], str], defense: Callback
) -> None:
    attack = BadNets(model=tiny_folder("bert"), learning_rate=1e-3)
    switches: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="gpu", devices=1, max_epochs=2, callbacks=[defense], **switches)
    trainer.fit(attack, datamodule=reviews(tmp_path))
    trainer.test(attack, datamodule=reviews(tmp_path), verbose=False)
    assert trainer.callback_metrics["test/cacc"].isfinite()
    assert all(parameter.isfinite().all() for parameter in attack.parameters())


@pytest.mark.parametrize("kind", ["bert", DECODER])
@pytest.mark.parametrize("defense", [BadActs, Dan, Dup, GradientAttention, LCF, Strip, SubstitutionVoting])
def test_scores_on_a_gpu_equal_those_on_the_processor(
    defense: type[Defense], kind: str, tiny_folder: Callable[[str], str], float32_products: None
) -> None:
    victim = loaded(tiny_folder(kind))
    scores = []
    for device in ("cpu", DEVICE):
        victim.to(device)
        made = defense(seed=0).to(device)
        batch = batch_on(device, victim)
        made.learn(victim, [batch])
        made.calibrate(victim, [batch])
        scores.append(made.score(victim, batch))
        assert scores[-1].text.device.type == device
    on_cpu, on_gpu = scores
    torch.testing.assert_close(on_gpu.text.cpu(), on_cpu.text, rtol=1e-3, atol=1e-4)
    if on_cpu.tokens is not None:
        assert on_gpu.tokens is not None
        torch.testing.assert_close(on_gpu.tokens.cpu(), on_cpu.tokens, rtol=1e-3, atol=1e-4)


def test_a_victim_predicts_on_a_gpu_as_on_the_processor(
    tiny_folder: Callable[[str], str], float32_products: None
) -> None:
    victim = loaded(tiny_folder("bert"))
    victim.new_head = None
    on_cpu = victim.predict(list(SENTENCES))
    on_gpu = victim.to(DEVICE).predict(list(SENTENCES))
    assert on_gpu.labels == on_cpu.labels
    torch.testing.assert_close(on_gpu.probabilities.cpu(), on_cpu.probabilities, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("precision", "within"), [("32-true", 1e-3), ("bf16-true", 0.2)])
def test_perplexities_on_a_gpu_equal_those_on_the_processor(
    precision: str, within: float, tmp_path: Path, language_model: str
) -> None:
    on_cpu, on_gpu = (
        Perplexity(language_model, str(tmp_path / device), of).to(torch.device(device)).leave_one_out(list(SENTENCES))
        for device, of in (("cpu", "32-true"), (DEVICE, precision))
    )
    for expected, perplexities in zip(on_cpu, on_gpu, strict=True):
        assert perplexities.text == pytest.approx(expected.text, rel=within)
        assert perplexities.without == pytest.approx(expected.without, rel=within)


def test_the_default_precision_is_bfloat16_where_the_gpu_has_it() -> None:
    has_bfloat16 = torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)
    assert auto_precision("gpu") == ("bf16-mixed" if has_bfloat16 else "32-true")


def test_scoring_holds_no_attention_probabilities_of_all_layers() -> None:
    """Over a plain forward and backward to the embeddings it may add a tenth of these probabilities."""
    layers, heads, rows, length = 6, 12, 64, 256
    sizes = {"num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 1536}
    network = BertForSequenceClassification(BertConfig(hidden_size=384, **sizes)).to(DEVICE).eval()
    network.requires_grad_(False)
    ids = torch.randint(1000, 2000, (rows, length), device=DEVICE)

    def plain() -> None:
        embedded = network.get_input_embeddings()(ids).requires_grad_()
        logits = network(inputs_embeds=embedded, attention_mask=torch.ones_like(ids)).logits
        torch.autograd.grad(logits.max(dim=-1).values.sum(), embedded)

    def added(run: Callable[[], object]) -> int:
        run()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before

    probabilities = 4 * layers * heads * rows * length**2
    scoring = added(lambda: attention_and_gradient(network, ids, torch.ones_like(ids)))
    assert scoring <= added(plain) + probabilities / 10


def test_dropout_of_reference_batches_draws_nothing_from_the_generator_of_training() -> None:
    device = torch.device(DEVICE, 0)
    torch.manual_seed(1)
    expected = torch.rand(3, device=device)
    torch.manual_seed(1)
    drawn = []
    for _ in range(2):
        with own_random_numbers(7, device):
            drawn.append(torch.rand(3, device=device))
    assert torch.equal(*drawn)
    assert torch.equal(torch.rand(3, device=device), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_and_give_the_metrics_of_one(workspace: Path) -> None:
    two = ["--trainer.accelerator=gpu", "--trainer.devices=2"]
    fit = command("fit", "-c", "data.yaml", *two, "--run_dir", "two", cwd=workspace)
    assert fit.returncode == 0, fit.stderr
    best, metrics = "two/checkpoints/best.ckpt", []
    for devices in (1, 2):
        run = f"tested_{devices}"
        options = ["--trainer.accelerator=gpu", f"--trainer.devices={devices}", "--run_dir", run]
        tested = command("test", "-c", "two/config.yaml", "--ckpt_path", best, *options, cwd=workspace)
        assert tested.returncode == 0, tested.stderr
        content = json.loads((workspace / run / "metrics.json").read_text(encoding="utf-8"))
        metrics.append({name: value for name, value in content.items() if name.startswith("test/")})
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-6)
