"""A callback that measures which frequencies of the clean and backdoor mappings the victim learns, and when."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.output_folder import folder_of
from lightning_backdoor.callbacks.shared import data_module, text_classifier
from lightning_backdoor.data.batching import TokenisedRows
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.metrics.fourier import filter_weights, relative_errors, squared_distances
from lightning_backdoor.models.evaluation_mode import evaluating
from lightning_backdoor.models.precision import evaluation_precision
from lightning_backdoor.victim import TextClassifier

FOURIER_COLUMNS = ("step", "mapping", "width", "low", "high")
#: one line of ``fourier.csv``.
Record = dict[str, Any]


class FourierView(Callback):
    """Logs low- and high-frequency errors of the clean and the backdoor mapping in training (arXiv 2402.12026).

    The clean mapping is the victim's mapping on a sample of clean training rows, the backdoor mapping its mapping on a
    sample of poisoned training rows; the samples do not change during training, and rows with a part of the trigger are
    in neither. ``metrics/fourier.py`` has the definitions. The input of a row is the mean of its word embeddings before
    training, the output is the victim's probabilities. The published code pads and flattens all word embeddings, so
    that a distance depends on the longest row, and uses validation rows. The callback reads the poison flags of the
    rows, so it is for analysis and is not a defense. Training is the same with and without it.

    Logged as ``fourier/clean_low``, ``fourier/clean_high``, ``fourier/backdoor_low``, ``fourier/backdoor_high`` for the
    middle width. When training ends, ``fourier.csv`` (one line per step, mapping and width) and ``fourier.html`` (heat
    maps over frequency and step, self-contained) are written to the folder of the trainer's logger or of an
    :class:`OutputFolder`, if there is either, and the heat maps are logged to Weights & Biases where a ``WandbLogger``
    is used.

    Args:
        every_n_steps: optimizer steps between measurements; the first and the last step are measured too.
        rows: maximum number of clean rows, and of poisoned rows, that are sampled.
        widths: filter widths above 0, as shares of the median squared distance between clean rows; a frequency is one
            over a width.

    Raises:
        InputError: a value is out of range, the model is not a :class:`TextClassifier`, or the data module is not a
            :class:`BackdoorDataModule`.

    Example::

        Trainer(callbacks=[FourierView()]).fit(BadNets(triggers=["cf"]), datamodule=data)
    """

    def __init__(
        self,
        every_n_steps: int = 20,
        rows: int = 128,
        widths: Sequence[float] = (0.0625, 0.08, 0.1, 0.125, 0.16, 0.25, 0.5),
    ) -> None:
        if every_n_steps < 1:
            raise InputError("every_n_steps", f"{every_n_steps} steps are out of range", "give at least 1")
        if rows < 2:
            raise InputError("rows", f"{rows} rows have no distances between them", "give at least 2")
        if not widths or not all(0 < width < math.inf for width in widths):
            raise InputError("widths", f"{list(widths)} is not a list of widths", "give one or more numbers above 0")
        self.every_n_steps = every_n_steps
        self.rows = rows
        self.widths = sorted(widths)
        self._records: list[Record] = []
        self._distances: dict[str, Tensor] = {}
        self._batches: dict[str, list[Batch]] = {}

    @property
    def state_key(self) -> str:
        """The key of the state, with rows and widths: a state with other rows or widths cannot be continued."""
        settings = {"rows": self.rows, "widths": self.widths}
        return f"{type(self).__qualname__}{settings!r}"

    def state_dict(self) -> dict[str, Any]:
        """The measurements so far, and the distances between the rows before training."""
        return {"records": self._records, "distances": self._distances}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the measurements and distances of a checkpoint."""
        self._records = list(state_dict["records"])
        self._distances = dict(state_dict["distances"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Samples the rows."""
        if stage != "fit":
            return
        victim, data = text_classifier(pl_module, type(self).__name__), data_module(trainer)
        if data is None:
            raise InputError("datamodule", "poison flags of training rows are only in a BackdoorDataModule", "give one")
        self._records, self._distances = [], {}
        train = data.training_rows()
        clean = ~(train.poisoned | train.negative)
        rows_of_mapping = {"clean": train.where(clean), "backdoor": train.where(train.poisoned)}
        self._batches = {
            name: self._sample(rows, f"{data.seed}/fourier/{name}", victim, data.eval_batch_size)
            for name, rows in rows_of_mapping.items()
            if len(rows) > 1
        }
        if not self._batches:
            raise InputError(
                "max_rows", f"{len(train)} training rows hold neither two clean nor two poisoned ones", "use more rows"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the distances between rows, and the errors before the first step."""
        if not self._distances:
            self._distances = {
                name: squared_distances(torch.cat([self._inputs(trainer, pl_module, batch) for batch in batches])).cpu()
                for name, batches in self._batches.items()
            }
        if not self._records:
            self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures the errors every ``every_n_steps`` steps."""
        if trainer.global_step % self.every_n_steps == 0:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the errors after the last step, and writes the files."""
        self._measure(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        figure, folder = heat_maps(self._records), folder_of(trainer)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "fourier.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, FOURIER_COLUMNS)
                writer.writeheader()
                writer.writerows(self._records)
            figure.write_html(folder / "fourier.html", include_plotlyjs=True)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                logger.experiment.log({"fourier/heat_maps": wandb.Plotly(figure)})

    def _sample(self, rows: Rows, seed: str, victim: TextClassifier, size: int) -> list[Batch]:
        chosen = rows.take(random.Random(seed).sample(range(len(rows)), min(self.rows, len(rows))))
        tokenised = TokenisedRows(chosen, victim.tokenizer, victim.max_length)
        # not a data loader, whose iterators would draw from the random numbers of training
        order = sorted(range(len(chosen)), key=lambda i: tokenised.lengths[i])
        return [tokenised[order[start : start + size]] for start in range(0, len(order), size)]

    @torch.no_grad()
    def _inputs(self, trainer: Trainer, pl_module: LightningModule, batch: Batch) -> Tensor:
        """The mean word embedding of each text, (batch, dimensions)."""
        batch = trainer.strategy.batch_to_device(batch)
        victim = text_classifier(pl_module, type(self).__name__)
        embedded: Tensor = victim.network.get_input_embeddings()(batch["input_ids"])
        mask = batch["attention_mask"][:, :, None]
        return (embedded * mask).sum(dim=1) / mask.sum(dim=1)

    @torch.no_grad()
    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the current step; each process measures its own copy of the victim, without communication."""
        step = trainer.global_step
        if self._records and self._records[-1]["step"] == step:
            return
        victim = text_classifier(pl_module, type(self).__name__)
        first = next(iter(self._distances.values()))  # of the clean rows, where there are any
        unit = float(first[~torch.eye(len(first), dtype=torch.bool)].median())
        if not unit > 0:
            problem = f"most of {len(first)} rows have the same words, so that widths have no unit"
            raise InputError("rows", problem, "give more")
        for name, batches in self._batches.items():
            with evaluating(victim), evaluation_precision(trainer):
                logits = torch.cat([victim(trainer.strategy.batch_to_device(batch)) for batch in batches])
            outputs = logits.float().softmax(dim=1)
            labels = torch.cat([batch["label"] for batch in batches]).to(outputs.device)
            targets = one_hot(labels, outputs.shape[1]).to(outputs)
            distances = self._distances[name].to(outputs)
            for width in self.widths:
                low, high = relative_errors(targets, outputs, filter_weights(distances, width * unit))
                record = {"step": step, "mapping": name, "width": width, "low": float(low), "high": float(high)}
                self._records.append(record)
        self._log(trainer, step)

    def _log(self, trainer: Trainer, step: int) -> None:
        middle = self.widths[len(self.widths) // 2]
        records = [record for record in self._records if record["step"] == step and record["width"] == middle]
        values = {f"fourier/{record['mapping']}_{part}": record[part] for record in records for part in ("low", "high")}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)


def heat_maps(records: Sequence[Record]) -> Any:
    """A plotly figure of the relative errors in ``fourier.csv``, by frequency and step.

    It has a row per mapping, with the low-frequency error on the left and the high-frequency error on the right.
    """
    import plotly.graph_objects as go  # importing it takes a second
    from plotly.subplots import make_subplots

    mappings = list(dict.fromkeys(record["mapping"] for record in records))
    steps = sorted({record["step"] for record in records})
    widths = sorted({record["width"] for record in records}, reverse=True)
    at = {(record["mapping"], record["width"], record["step"]): record for record in records}
    titles = [f"{name}, {part}" for name in mappings for part in ("low", "high")]
    figure = make_subplots(len(mappings), 2, subplot_titles=titles, shared_xaxes=True, shared_yaxes=True)
    for i, name in enumerate(mappings, start=1):
        for j, part in enumerate(("low", "high"), start=1):
            errors = [[at[name, width, step][part] for step in steps] for width in widths]
            frequencies = [f"{1 / width:.3g}" for width in widths]
            figure.add_trace(go.Heatmap(x=steps, y=frequencies, z=errors, coloraxis="coloraxis"), row=i, col=j)
        figure.update_yaxes(title_text="frequency (1 / width)", type="category", row=i, col=1)
    figure.update_xaxes(title_text="step", row=len(mappings))
    colours = {"colorscale": "RdBu_r", "cmin": 0, "cmax": 1, "colorbar": {"title": {"text": "relative error"}}}
    return figure.update_layout(title_text="Relative error by frequency and step", coloraxis=colours)
