"""Fine-tuning: the optimizer, the schedule, what is frozen, saved and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks import MuScleLoRA
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews


def fit(
    folder: Path, victim: TextClassifier, ckpt: Path | None = None, rows: int = 120, workers: int = 0, **options: Any
) -> Trainer:
    seed_everything(0, verbose=False)
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{**defaults, **options},
    )
    trainer.fit(victim, datamodule=reviews(folder, rows, num_workers=workers), ckpt_path=ckpt, weights_only=True)
    return trainer


@pytest.fixture
def model(tiny_folder: Callable[[str], str]) -> str:
    return tiny_folder("bert")


def test_making_a_victim_loads_nothing() -> None:
    victim = TextClassifier(model="no/such/model")
    assert not hasattr(victim, "network")
    assert sum(1 for _ in victim.parameters()) == 0


def test_training_learns_and_dropout_is_on(tmp_path: Path, model: str) -> None:
    modes = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            modes.append(all(module.training for module in pl_module.network.modules()))

    victim = TextClassifier(model=model, learning_rate=3e-3)
    trainer = fit(tmp_path, victim, rows=400, max_epochs=6, callbacks=[Watch()])
    assert modes
    assert all(modes)
    assert trainer.callback_metrics["val/cacc"] > 0.8


def test_biases_and_norms_have_no_weight_decay(tmp_path: Path, model: str) -> None:
    victim = TextClassifier(model=model, weight_decay=0.1)
    trainer = fit(tmp_path, victim)
    names = {id(parameter): name for name, parameter in victim.named_parameters()}
    decayed, kept = trainer.optimizers[0].param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0.0
    assert all("bias" in names[id(p)] or "Norm" in names[id(p)] for p in kept["params"])
    assert not any("bias" in names[id(p)] or "Norm" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_schedule_spans_the_real_number_of_steps(tmp_path: Path, model: str, accumulate: int) -> None:
    rates = []

    class Watch(Callback):
        def on_before_zero_grad(self, trainer: Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    victim = TextClassifier(model=model, learning_rate=1e-3, warmup=0.25)
    trainer = fit(tmp_path, victim, max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[Watch()])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0  # decayed to the end, neither short of it nor past it
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(1e-3, rel=0.2)
    assert peak == pytest.approx(0.25 * len(rates), abs=accumulate + 1)


def test_frozen_parts_stay_and_others_move(tmp_path: Path, model: str) -> None:
    before = AutoModelForSequenceClassification.from_pretrained(model).state_dict()
    victim = TextClassifier(model=model, freeze=["embeddings", "encoder.layer.0"], learning_rate=1e-2)
    fit(tmp_path, victim)
    for name, value in victim.network.state_dict().items():
        frozen = "embeddings" in name or "layer.0." in name
        if frozen:
            assert torch.equal(value, before[name]), name
    assert not torch.equal(victim.network.classifier.weight, before["classifier.weight"])


def test_frozen_parts_have_no_dropout_in_any_epoch(tmp_path: Path, model: str) -> None:
    modes: set[tuple[bool, bool]] = set()

    class Watched(TextClassifier):
        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            encoder = self.network.base_model.encoder
            assert isinstance(encoder, torch.nn.Module)
            frozen, trained = encoder.get_submodule("layer.0"), encoder.get_submodule("layer.1")
            modes.add((frozen.training, trained.training))
            return super().training_step(batch, batch_idx)

    fit(tmp_path, Watched(model=model, freeze=["encoder.layer.0"]), max_epochs=2)
    assert modes == {(False, True)}


def test_freezing_what_is_not_there_is_refused(model: str) -> None:
    with pytest.raises(InputError, match=r"freeze: the model has no part 'decoder'; its parts begin with embeddings"):
        TextClassifier(model=model, labels=["a", "b"], freeze=["decoder"]).configure_model()


def test_under_lora_the_updates_and_the_whole_head_are_trained_and_nothing_else(model: str) -> None:
    victim = TextClassifier(model, labels=["no", "yes"], lora_rank=3)
    victim.configure_model()
    trained = {name for name, parameter in victim.network.named_parameters() if parameter.requires_grad}
    updates = {name for name in trained if "lora_" in name}
    assert trained - updates == {
        f"{part}.{of}" for part in ("bert.pooler.dense", "classifier") for of in ("weight", "bias")
    }
    assert len(updates) == 2 * 2 * 2  # two matrices each for query and value of two layers
    assert {victim.network.get_parameter(name).shape for name in updates} == {(3, 32), (32, 3)}


def test_muscle_lora_adds_no_second_lora_but_its_other_layers(tmp_path: Path, model: str) -> None:
    options: dict[str, Any] = {"alignment": False, "radial_scalings": [1, 2]}
    with pytest.raises(InputError, match=r"^lora_rank: the victim has LoRA of its own; .*$"):
        fit(tmp_path, TextClassifier(model, lora_rank=2), callbacks=[MuScleLoRA(**options)])
    victim = TextClassifier(model, lora_rank=2, learning_rate=1e-2)
    fit(tmp_path, victim, callbacks=[MuScleLoRA(**options, lora=False)])
    victim.save_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    encoded = victim.tokenizer("a good movie", return_tensors="pt")
    with torch.no_grad():
        expected = victim.eval().network(**encoded).logits
        torch.testing.assert_close(plain(**encoded).logits, expected, rtol=1e-4, atol=1e-5)


def test_texts_longer_than_the_model_reads_are_refused_before_its_weights_are_loaded(model: str) -> None:
    assert TextClassifier(model, max_length=136).load_config()
    for loading in (TextClassifier.load_config, TextClassifier.configure_model):
        with pytest.raises(InputError, match=r"^max_length: 137 is beyond the 136 positions of '.*'; lower it$"):
            loading(TextClassifier(model, labels=["no", "yes"], max_length=137))


def test_roberta_counts_positions_from_the_one_after_its_padding(tiny_folder: Callable[[str], str]) -> None:
    assert TextClassifier(tiny_folder("roberta"), max_length=134).load_config()
    with pytest.raises(InputError, match=r"^max_length: 135 is beyond the 134 positions of '.*'; lower it$"):
        TextClassifier(tiny_folder("roberta"), max_length=135).load_config()


OUT_OF_RANGE = {
    "max_length": (0,),
    "learning_rate": (0.0, math.nan, math.inf),
    "weight_decay": (-0.01, math.nan, math.inf),
    "warmup": (1.0, math.nan),
    "lora_rank": (0,),
}


@pytest.mark.parametrize("option", [{name: value} for name, values in OUT_OF_RANGE.items() for value in values])
def test_values_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(option))}: "):
        TextClassifier(**option)


def test_the_export_is_a_folder_of_transformers_with_label_names(tmp_path: Path, model: str) -> None:
    victim = TextClassifier(model=model)
    fit(tmp_path, victim)
    victim.save_pretrained(tmp_path / "export")
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert network.config.id2label == {0: "negative", 1: "positive"}
    encoded = tokenizer("a good movie", return_tensors="pt")
    victim.eval()
    with torch.no_grad():
        assert torch.equal(network(**encoded).logits, victim.network(**encoded).logits)


def test_a_checkpoint_restores_the_attack_without_data(tmp_path: Path, model: str) -> None:
    attack = BadNets(model=model, triggers=["mn"], poison_rate=0.2)
    fit(tmp_path, attack).save_checkpoint(tmp_path / "kept.ckpt")
    restored = BadNets.load_from_checkpoint(tmp_path / "kept.ckpt", weights_only=True)
    assert (restored.triggers, restored.poison_rate, restored.hparams["labels"]) == (
        ["mn"],
        0.2,
        ["negative", "positive"],
    )
    for name, value in attack.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name])


NAMES = ["negative", "positive"]


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["positive", "negative"], "in another order; set labels of the source in the victim's order"),
        ({"negative": [0], "neutral": [2], "positive": [1]}, "it has a head for 2 classes, the data have 3"),
        (["0", "1"], None),
        (NAMES, None),
    ],
)
def test_a_trained_victim_answers_in_the_order_of_its_own_labels(
    tmp_path: Path, model: str, names: Any, message: str | None, loaded: bool, recwarn: pytest.WarningsRecorder
) -> None:
    checkpoint = tmp_path / "kept.ckpt"
    trainer = fit(tmp_path, TextClassifier(model=model), limit_train_batches=1, limit_val_batches=0)
    trainer.save_checkpoint(checkpoint)
    data = reviews(tmp_path, 120)
    data.source.labels = names
    if isinstance(names, dict):
        with (tmp_path / "reviews.csv").open("a") as file:
            file.writelines(f"a film {i},2\n" for i in range(30))
    victim = TextClassifier.load_trained(str(checkpoint)) if loaded else TextClassifier(model=model)
    tester = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    options: dict[str, Any] = {"datamodule": data, "verbose": False, "weights_only": True}
    if message:
        with pytest.raises(InputError, match=message):
            tester.test(victim, ckpt_path=None if loaded else checkpoint, **options)
    else:
        tester.test(victim, ckpt_path=None if loaded else checkpoint, **options)
        said = [str(warning.message) for warning in recwarn if "taken for the same" in str(warning.message)]
        assert len(said) == (names != NAMES)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, model: str, workers: int) -> None:
    ends = []
    for start in (None, tmp_path / "epochs" / "epoch=0.ckpt"):
        victim = BadNets(model=model, learning_rate=1e-3, labels=["negative", "positive"])
        victim.configure_model()
        assert any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in victim.network.modules())
        keep = ModelCheckpoint(tmp_path / "epochs", filename="{epoch}", save_top_k=-1)
        fit(tmp_path, victim, start, workers=workers, max_epochs=2, callbacks=[keep], enable_checkpointing=True)
        ends.append(victim.network.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_a_fit_that_resumes_nothing_draws_by_its_seed(tmp_path: Path, model: str) -> None:
    states = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                states.append(torch.get_rng_state())

    class Refuses(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            raise RuntimeError("stopped")

    victim, path = TextClassifier(model=model, labels=["negative", "positive"]), tmp_path / "one.ckpt"
    victim.configure_model()
    trainer = fit(tmp_path, victim, callbacks=[Look()])
    trainer.save_checkpoint(path)
    trainer.test(victim, datamodule=reviews(tmp_path, 120), ckpt_path=path, verbose=False, weights_only=True)
    fit(tmp_path, victim, callbacks=[Look()])
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, victim, path, max_epochs=2, callbacks=[Refuses()])
    fit(tmp_path, victim, callbacks=[Look()])
    assert len(states) == 3
    assert all(torch.equal(state, states[0]) for state in states)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, model: str) -> None:
    victims = [BadNets(model=model, learning_rate=1e-3) for _ in range(2)]
    for victim in victims:
        fit(tmp_path, victim)
    for name, value in victims[0].network.state_dict().items():
        assert torch.equal(value, victims[1].network.state_dict()[name]), name


class Fails(Callback):
    """Ends an evaluation in its second batch."""

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 1:
            raise RuntimeError("stopped")

    on_validation_batch_end = on_test_batch_end


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_an_evaluation_counts_no_rows_of_one_that_failed(stage: str, tmp_path: Path, model: str) -> None:
    victim = BadNets(model=model)

    def evaluated(*callbacks: Callback) -> Any:
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
        made = Trainer(accelerator="cpu", callbacks=list(callbacks), **quiet)
        return getattr(made, stage)(victim, datamodule=reviews(tmp_path, 120, eval_batch_size=4), verbose=False)

    expected = evaluated()
    with pytest.raises(RuntimeError, match="stopped"):
        evaluated(Fails())
    assert evaluated() == expected


def test_bf16_mixed_precision_trains(tmp_path: Path, model: str) -> None:
    trainer = fit(tmp_path, TextClassifier(model=model), precision="bf16-mixed")
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_decoders_without_a_padding_token_are_padded_and_trained(
    tmp_path: Path, tiny_folder: Callable[[str], str]
) -> None:
    trainer = fit(tmp_path, TextClassifier(model=tiny_folder("gpt2")))
    assert trainer.callback_metrics["val/cacc"].isfinite()
