"""Training on a GPU: fine-tuning over transformers.Trainer, MuScleLoRA over LoRA, and one device over two."""

from __future__ import annotations

import csv
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from transformers import DataCollatorWithPadding, PrinterCallback, TrainerCallback, TrainingArguments

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.callbacks import MuScleLoRA
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.victim import TextClassifier
from tests.measurements.gpu.report import Row
from tests.measurements.gpu.setting import LABELS, MINILM, Setting, Skipped, model_folder, texts, weights_of
from tests.measurements.gpu.timing import wait
from tests.measurements.pairs import alternate

BATCH_SIZE = 32
#: optimizer steps per measurement, and before the first.
STEPS, WARM_UP = 60, 10
PRECISIONS = [("float32", "32-true", False), ("bf16-mixed", "bf16-mixed", True)]


class Timed(Callback):
    """Seconds of the steps of a fit after the first ``warm_up``; rank 0 writes them into a file."""

    def __init__(self, file: Path, warm_up: int, device: str) -> None:
        self.file, self.warm_up, self.device = file, warm_up, device
        self.started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.warm_up:
            wait(self.device)
            self.started = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wait(self.device)
        if trainer.is_global_zero:
            self.file.write_text(str(time.perf_counter() - self.started), encoding="utf-8")


class TimedByTransformers(TrainerCallback):  # type: ignore[misc]
    """Likewise for transformers.Trainer; the seconds are kept."""

    def __init__(self, warm_up: int, device: str) -> None:
        self.warm_up, self.device = warm_up, device
        self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.warm_up:
            wait(self.device)
            self.seconds = -time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait(self.device)
        self.seconds += time.perf_counter()


class Workshop:
    """A model, generated rows and settings for fits."""

    def __init__(self, setting: Setting) -> None:
        warnings.filterwarnings("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        self.setting = setting
        self.folder = Path(setting.folder)
        self.model = model_folder(MINILM, setting)
        self.batch_size = setting.size(BATCH_SIZE, 4)
        self.warm_up = setting.size(WARM_UP, 1)
        self.steps = setting.size(STEPS, 3)
        self.rows = (self.steps + self.warm_up) * self.batch_size
        self.file = self.folder / "rows.csv"
        count = max(round(self.rows / 0.65), setting.size(6000, 400))  # three tenths are validation and test rows
        with self.file.open("w", encoding="utf-8", newline="") as file:
            rows = [(text, LABELS[i % 2]) for i, text in enumerate(texts(count))]
            csv.writer(file).writerows([("text", "label"), *rows])

    def data(self, batch_size: int | None = None) -> BackdoorDataModule:
        return BackdoorDataModule(
            Source(str(self.file), labels=LABELS),
            batch_size=batch_size or self.batch_size,
            max_rows={"train": self.rows, "test": 12 * self.batch_size},
            cache_dir=str(self.folder / "cache"),
        )

    def trainer(self, precision: str = "32-true", devices: int = 1, callbacks: list[Callback] | None = None) -> Trainer:
        seed_everything(0, verbose=False)
        return Trainer(
            accelerator="gpu" if self.setting.device == "cuda" else "cpu",
            devices=devices,
            strategy="ddp_spawn" if devices > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
            max_epochs=1,
            limit_val_batches=0,
            gradient_clip_val=None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.folder,
            callbacks=callbacks,
        )

    def texts_per_second(
        self, data: BackdoorDataModule, precision: str, devices: int = 1, defense: Callback | None = None
    ) -> float:
        """Of a fit of a new victim by the library, its first steps left out."""
        file = self.folder / "seconds"
        timed = Timed(file, self.warm_up, self.setting.device)
        trainer = self.trainer(precision, devices, [timed, *([defense] if defense else [])])
        victim = TextClassifier(self.model, labels=LABELS)
        victim.configure_model()  # here, since processes that Lightning starts give weights back to this one
        trainer.fit(victim, datamodule=data)
        return self.steps * self.batch_size / float(file.read_text(encoding="utf-8"))

    def test_metrics(self, attack: BadNets, data: BackdoorDataModule, devices: int) -> dict[str, float]:
        trainer = self.trainer(devices=devices)
        trainer.test(attack, datamodule=data, verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    def by_transformers(self, data: BackdoorDataModule, bf16: bool) -> float:
        """Texts per second of transformers.Trainer, on the same rows, grouped by length."""
        timed = TimedByTransformers(self.warm_up, self.setting.device)
        victim = TextClassifier(self.model, labels=LABELS)
        victim.configure_model()
        rows = data.clean_splits()["train"]
        tokens = victim.tokenizer([row["text"] for row in rows], truncation=True, max_length=victim.max_length)
        examples = [
            {"input_ids": ids, "attention_mask": mask, "label": row["label"]}
            for ids, mask, row in zip(tokens["input_ids"], tokens["attention_mask"], rows, strict=True)
        ]
        arguments = TrainingArguments(
            output_dir=str(self.folder / "transformers"),
            use_cpu=self.setting.device == "cpu",
            bf16=bf16,
            num_train_epochs=1,
            per_device_train_batch_size=self.batch_size,
            train_sampling_strategy="group_by_length",
            learning_rate=victim.hparams["learning_rate"],
            weight_decay=victim.hparams["weight_decay"],
            warmup_steps=victim.hparams["warmup"],
            max_grad_norm=0.0,  # the library does not clip either
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # private: transformers 5.23.0; it would use all GPUs
        trainer = transformers.Trainer(
            model=victim.network,
            args=arguments,
            train_dataset=examples,
            data_collator=DataCollatorWithPadding(victim.tokenizer),
            callbacks=[timed],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return self.steps * self.batch_size / timed.seconds


def compared_fits(
    title: str, unit: str, library: Callable[[], float], reference: Callable[[], float], setting: Setting, **more: Any
) -> Row:
    """A row that compares the figures of two kinds of fits, of which each is tried once before."""
    if not setting.toy:
        library()
        reference()
    pairs = list(alternate(library, reference, max(1, setting.rounds // 2)))
    return Row(
        title,
        unit,
        median(pair.library for pair in pairs),
        reference=median(pair.reference for pair in pairs),
        ratio=median(pair.library / pair.reference for pair in pairs),
        rounds=len(pairs),
        **more,
    )


def precisions(setting: Setting) -> list[tuple[str, str, bool]]:
    """The precisions to train in: our name, Lightning's, and the argument ``bf16`` of transformers."""
    return PRECISIONS[: setting.size(len(PRECISIONS), 1)]


def fine_tuning(setting: Setting) -> Iterator[Row]:
    shop = Workshop(setting)
    data = shop.data()  # kept, so that rows are read and tokenised once
    for name, precision, bf16 in precisions(setting):
        yield compared_fits(
            f"fine-tuning / transformers.Trainer, {MINILM}, batches of {shop.batch_size}",
            "texts/s",
            partial(shop.texts_per_second, data, precision),
            partial(shop.by_transformers, data, bf16),
            setting,
            precision=name,
            note=weights_of(MINILM, setting),
        )


def muscle_lora(setting: Setting) -> Iterator[Row]:
    shop = Workshop(setting)
    data = shop.data()
    reference_size = setting.size(96, 8)

    def seconds_per_step(precision: str, whole: bool) -> float:
        defense = MuScleLoRA(multi_scale=whole, alignment=whole, reference_size=reference_size)
        return shop.batch_size / shop.texts_per_second(data, precision, defense=defense)

    for name, precision, _ in precisions(setting):
        yield compared_fits(
            f"MuScleLoRA step / LoRA step, {MINILM}, batches of {shop.batch_size}",
            "s",
            partial(seconds_per_step, precision, whole=True),
            partial(seconds_per_step, precision, whole=False),
            setting,
            precision=name,
            note=weights_of(MINILM, setting),
        )


def two_devices(setting: Setting) -> Iterator[Row]:
    """Fine-tuning on two devices over one, with the same rows per step, and the equality of their test metrics.

    Raises:
        Skipped: there is one device.
        RuntimeError: the metrics differ.
    """
    if setting.device != "cuda" or torch.cuda.device_count() < 2:
        raise Skipped("one device")
    yield from on_two_devices(setting)


def on_two_devices(setting: Setting) -> Iterator[Row]:
    """As :func:`two_devices`, on two GPUs, or on two processes of a processor."""
    # or the weights would need too many open files
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]
    shop = Workshop(setting)
    whole, half = shop.data(), shop.data(shop.batch_size // 2)
    for name, precision, _ in precisions(setting):
        yield compared_fits(
            f"fine-tuning on two devices / on one, {MINILM}, {shop.batch_size} rows per step",
            "texts/s",
            partial(shop.texts_per_second, half, precision, devices=2),
            partial(shop.texts_per_second, whole, precision),
            setting,
            precision=name,
        )
    seed_everything(0, verbose=False)
    attack = BadNets(model=shop.model, labels=LABELS)
    attack.configure_model()
    one, two = (shop.test_metrics(attack, whole, devices) for devices in (1, 2))
    equal = sum(abs(one[name] - two[name]) <= 1e-6 for name in one)
    yield Row("test metrics of two devices that equal those of one", "metrics", equal, note=f"of {len(one)}")
    if equal != len(one) or one.keys() != two.keys():
        raise RuntimeError(f"test metrics differ: {one} on one device, {two} on two")
