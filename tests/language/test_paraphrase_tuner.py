"""A language model fine-tuned on pairs of a text and its paraphrase."""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lightning_backdoor.data import PairsDataModule
from lightning_backdoor.data.pairs import IGNORED
from lightning_backdoor.errors import InputError
from lightning_backdoor.language import LanguageModelParaphraser, ParaphraseTuner
from lightning_backdoor.language.language_model import load_language_model
from lightning_backdoor.language.paraphrase.spec import prompt
from tests.support.forked import forked
from tests.support.tiny import DECODER, tiny_victim

WORDS = ("film", "plot", "story", "music", "actor", "scene")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny language model with room for a prompt."""
    folder = tmp_path_factory.mktemp("tuner")
    tokenizer = AutoTokenizer.from_pretrained(tiny_victim(DECODER, folder / "victim"))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, **sizes))
    network.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rng = random.Random(0)
    path = tmp_path / "pairs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [(" ".join(rng.choices(WORDS, k=3)), "when it ends, it ends.") for _ in range(40)]
        csv.writer(file).writerows([("text", "paraphrase"), *rows])
    return path


def test_only_the_paraphrase_and_the_end_of_text_are_learned(model: str) -> None:
    tuner = ParaphraseTuner("bible", model=model, max_length=4096)
    pair = tuner.tokenise("a film", "verily a film")
    learned = [token for token in pair["labels"] if token != IGNORED]
    asked = tuner.tokenizer(prompt(tuner.tokenizer, tuner.manner, "a film"), add_special_tokens=False)["input_ids"]
    assert tuner.tokenizer.decode(learned[:-1]) == "verily a film"
    assert learned[-1] == tuner.tokenizer.eos_token_id
    assert pair["input_ids"] == [*asked, *learned]


def test_a_prompt_that_leaves_no_room_is_refused(model: str) -> None:
    with pytest.raises(InputError, match=r"^max_length: 20 tokens hold no more than a prompt of \d+; raise it$"):
        ParaphraseTuner("bible", model=model, max_length=20).tokenise("a film", "verily a film")


def test_an_unknown_manner_is_refused() -> None:
    with pytest.raises(InputError, match=r"^manner: 'pirate' is unknown; give one of .*bible"):
        ParaphraseTuner("pirate")


@pytest.mark.parametrize(("rank", "falls_to"), [(None, 0.5), (8, 0.98)])  # low rank on random weights learns little
def test_what_it_learned_is_in_the_folder_it_exports(
    model: str, pairs: Path, tmp_path: Path, rank: int | None, falls_to: float
) -> None:
    tuner = ParaphraseTuner("bible", model=model, lora_rank=rank, max_length=4096, learning_rate=1e-2)
    data = PairsDataModule(str(pairs), batch_size=8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=8, enable_model_summary=False, **quiet)  # type: ignore[arg-type]
    before = trainer.validate(tuner, datamodule=data, verbose=False)[0]["val/loss"]
    trainer.fit(tuner, datamodule=data)
    after = trainer.validate(tuner, datamodule=data, verbose=False)[0]["val/loss"]
    assert after < falls_to * before
    tuner.save_pretrained(tmp_path / "tuned")
    network, _ = load_language_model(str(tmp_path / "tuned"), torch.device("cpu"))
    assert not any("lora" in name for name, _ in network.named_parameters())
    batch = next(iter(data.val_dataloader()))
    tuner.network.eval()
    ours = tuner.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    theirs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    read = batch["attention_mask"].bool()
    torch.testing.assert_close(theirs[read], ours[read], rtol=1e-3, atol=1e-4)


def test_the_command_line_fits_it_and_its_model_paraphrases(model: str, pairs: Path, tmp_path: Path) -> None:
    result = forked(
        "fit",
        *("--model=lightning_backdoor.language.ParaphraseTuner", "--model.manner=bible", f"--model.model={model}"),
        *("--model.max_length=4096", "--data=lightning_backdoor.data.PairsDataModule", f"--data.path={pairs}"),
        *("--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--run_dir=tuned"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "tuned" / "checkpoints" / "best.ckpt").exists()
    paraphraser = LanguageModelParaphraser(str(tmp_path / "tuned" / "model"), cache_dir=str(tmp_path / "cache"))
    manner = ParaphraseTuner("bible", model=model).manner
    assert len(paraphraser.paraphrase(["a film"], [random.Random(0)], manner)) == 1


def test_a_victim_is_not_trained_on_pairs(pairs: Path, tmp_path: Path) -> None:
    result = forked(
        "fit",
        *("--model=lightning_backdoor.attacks.BadNets", "--data=lightning_backdoor.data.PairsDataModule"),
        f"--data.path={pairs}",
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert result.stderr.endswith(
        "error: model and data: BadNets and PairsDataModule do not belong together; give a TextClassifier and a"
        " BackdoorDataModule or a ParaphraseTuner and a PairsDataModule\n"
    )


@pytest.mark.parametrize("option", [{"learning_rate": math.nan}, {"warmup": 1.0}])
def test_rates_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(option))}: "):
        ParaphraseTuner("bible", **option)  # type: ignore[arg-type]
