"""Checks an attack against its contract, from single texts to a fit on a tiny model."""

from __future__ import annotations

import copy
import math
import pickle
import random
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from lightning_backdoor.attacks import BackdoorAttack, Poisoned
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.data.aims import distinct_targets
from lightning_backdoor.data.cleaning import LabelledText
from lightning_backdoor.data.poisoning import study_training
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import Diverged, InputError, reason
from lightning_backdoor.testing.material import UNUSUAL_TEXTS, labelled_texts, quiet, require, rows_file, tiny_bert


def check_attack(attack: BackdoorAttack, rows: Sequence[LabelledText] | None = None, max_epochs: int = 1) -> None:
    """Checks an attack against the contract of :class:`lightning_backdoor.attacks.BackdoorAttack`.

    The rules: ``poison_texts``, and what writes the texts of each aim, also in training, returns a :class:`Poisoned` or
    None for each text, always the same for the same generator state, whatever the other texts and their order; spans
    lie inside the poisoned text, and an unchanged text has none; targets are labels, and no two aims share one;
    ``poison_key`` stays the same; ``negative_texts`` and the methods for training rows, if the attack has them, obey
    the same rules; a ``fit`` on a tiny model logs CACC and ASR (and FTR for an attack with negatives) as ``val/...``
    and ``test/...``, and leaves a checkpoint that loads without running code.

    Args:
        attack: a new attack, not yet used. Its model is replaced by a tiny one in a copy; the attack itself is not
            changed.
        rows: labelled texts to poison and to train on, at least 80, for attacks that cannot poison every text (such as
            paraphrases from a file); random texts by default.
        max_epochs: number of epochs of the fit; more than one for attacks whose training has phases.

    Raises:
        AssertionError: a rule is broken.
        InputError: the attack already has a network or starts from a published victim, or rejects the data.

    >>> from lightning_backdoor.attacks import BadNets
    >>> check_attack(BadNets(triggers=["cf"]))
    """
    if hasattr(attack, "network") or attack.users_phase:
        raise InputError("attack", "has a network or a published victim already", "give one fresh from its constructor")
    name = type(attack).__name__
    given = attack.hparams.get("labels")
    count = len(given) if given else 2
    if not given:
        targets = distinct_targets(_told(attack, 2).aims)
        count = max(count, *(label + 1 for label in [*targets, *(row.label for row in rows or [])]))
    told = _told(attack, count)
    _check_targets(name, told, count)
    rate = attack.poison_rate
    require(0 < rate <= 1, name, f"poison_rate {rate} is not a share above 0 and up to 1")
    texts = [row.text for row in rows][:20] if rows else [row.text for row in labelled_texts(20, count)]
    if rows is None:
        texts += UNUSUAL_TEXTS
    attack = copy.deepcopy(attack)
    training = rows or labelled_texts(max(100, math.ceil(3 / rate)), count)
    clean = Rows.clean([row.text for row in training], [row.label for row in training])
    study_training(clean, attack, 0, given or [f"label {i}" for i in range(count)])
    _check_targets(name, attack, count)  # which may depend on the rows
    key = attack.poison_key()
    require(key is None or isinstance(key, str), f"{name}.poison_key", f"answers {key!r}, not text or None")
    results = _check_poison(f"{name}.poison_texts", attack.poison_texts, texts)
    require(any(result is not None for result in results), f"{name}.poison_texts", "leaves out every text")
    _check_changes(f"{name}.poison_texts", attack, texts, results)
    _check_aims(name, attack, texts)
    _check_negatives(name, attack, texts, results)
    for method in ("poison_training_texts", "negative_training_texts"):
        if getattr(type(attack), method) is not getattr(BackdoorAttack, method):
            _check_poison(f"{name}.{method}", getattr(attack, method), texts)
    require(attack.poison_key() == key, f"{name}.poison_key", "changes when texts are poisoned, so that no cache holds")
    _check_fit(name, attack, training, count, max_epochs)


def _told(attack: BackdoorAttack, count: int) -> BackdoorAttack:
    """A copy of the attack that knows the labels, which are numbered if it was given none."""
    told = copy.deepcopy(attack)
    told.know_labels(attack.hparams.get("labels") or [f"label {i}" for i in range(count)])
    return told


def _check_targets(name: str, attack: BackdoorAttack, count: int) -> None:
    for target in distinct_targets(attack.aims):
        require(0 <= target < count, name, f"target_label {target} is not one of {count} labels")
    for label in range(count):
        targets = [int(aim.wanted(np.array([label]))[0]) for aim in attack.aims]
        problem = f"two aims have one target, {targets} for rows of label {label}"
        require(len({*targets}) == len(targets), f"{name}.aims", f"{problem}; make one aim of them")


def _check_aims(name: str, attack: BackdoorAttack, texts: Sequence[str]) -> None:
    """Checks what writes the texts of each aim, where it is none of the methods that are checked as such."""
    checked = (attack.poison_texts, attack.poison_training_texts)
    for number, aim in enumerate(attack.aims):
        where = f"{name}.aims[{number}]"
        if aim.write not in checked:
            _check_changes(f"{where}.write", attack, texts, _check_poison(f"{where}.write", aim.write, texts))
        if aim.write_in_training is not None and aim.write_in_training not in (*checked, aim.write):
            _check_poison(f"{where}.write_in_training", aim.write_in_training, texts)


def _check_changes(
    where: str, attack: BackdoorAttack, texts: Sequence[str], results: Sequence[Poisoned | None]
) -> None:
    """Checks that some text that is not left out is changed, unless the trigger is written into batches."""
    learned = type(attack).on_after_batch_transfer is not BackdoorAttack.on_after_batch_transfer
    changes = [result.text != text for result, text in zip(results, texts, strict=True) if result is not None]
    problem = "changes no text, and no on_after_batch_transfer writes the trigger in evaluation"
    require(learned or not changes or any(changes), where, problem)


def _check_poison(where: str, poison: Callable[..., Any], texts: Sequence[str]) -> list[Poisoned | None]:
    """Checks the common rules of ``poison_texts`` and ``negative_texts``, and returns the results."""

    def answers(chosen: Sequence[int]) -> list[Any]:
        rngs = [random.Random(f"check/{i}") for i in chosen]
        try:
            results = list(poison([texts[i] for i in chosen], rngs))
        except Exception as error:
            raise AssertionError(f"{where}: fails on {[texts[i] for i in chosen]!r:.300}: {reason(error)}") from error
        require(len(results) == len(chosen), where, f"answers {len(chosen)} texts with {len(results)} results")
        return results

    order = list(range(len(texts)))
    results = answers(order)
    for text, result in zip(texts, results, strict=True):
        if result is not None:
            _check_poisoned(where, text, result)
    alike = "; every random choice must come from the row's own generator"
    require(answers(order) == results, where, f"poisons the same texts differently when asked again{alike}")
    require(answers(order[::-1])[::-1] == results, where, f"depends on the order of the texts{alike}")
    require([answers([i])[0] for i in order] == results, where, f"depends on the other texts of the batch{alike}")
    return results


def _check_poisoned(where: str, text: str, result: Any) -> None:
    require(isinstance(result, Poisoned), where, f"answers {text!r} with {result!r:.300}, not with Poisoned or None")
    require(isinstance(result.text, str), where, f"the poisoned text is {result.text!r:.300}, not a string")
    for span in result.spans:
        inside = len(span) == 2 and 0 <= span[0] < span[1] <= len(result.text)
        size = f"has {len(result.text)} characters"
        require(inside, where, f"span {tuple(span)} does not lie inside of {result.text!r:.300}, which {size}")
    if result.text == text:
        require(not result.spans, where, f"{text!r:.300} is unchanged, yet has spans of a trigger")


def _check_negatives(name: str, attack: BackdoorAttack, texts: list[str], poisoned: list[Poisoned | None]) -> None:
    rate = attack.negative_rate
    require(0 <= rate < 1, name, f"negative_rate {rate} is not a share from 0 to below 1")
    if attack.negative_texts(texts, [random.Random(i) for i in range(len(texts))]) is None:
        require(rate == 0, name, f"negative_rate is {rate}, but negative_texts has none")
        return
    negatives = _check_poison(f"{name}.negative_texts", attack.negative_texts, texts)
    for negative, whole in zip(negatives, poisoned, strict=True):
        if negative is not None and whole is not None:
            same = negative.text == whole.text
            require(not same, f"{name}.negative_texts", f"{negative.text!r:.300} carries the whole trigger, not a part")


def _check_fit(name: str, attack: BackdoorAttack, rows: Sequence[LabelledText], count: int, max_epochs: int) -> None:
    trial = copy.deepcopy(attack)
    with tempfile.TemporaryDirectory() as folder, quiet():
        # frozen parts and the rank of updates refer to the replaced model
        trial.hparams.update(model=tiny_bert(f"{folder}/model", count, trial.max_length), freeze=None, lora_rank=None)
        labels = trial.hparams.get("labels") or [f"label {i}" for i in range(count)]
        data = BackdoorDataModule(Source(rows_file(rows, folder), labels=list(labels)), batch_size=8, cache_dir=folder)
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=max_epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        diverged = False
        try:
            trainer.fit(trial, datamodule=data)
        except Diverged:
            diverged = True
        logged = dict(trainer.callback_metrics)
        finite = all(bool(parameter.isfinite().all()) for parameter in trial.parameters())
        require(finite and not diverged, f"{name}: fit", "leaves parameters that are not finite")
        trainer.save_checkpoint(f"{folder}/last.ckpt")
        try:
            torch.load(f"{folder}/last.ckpt", weights_only=True)
        except pickle.UnpicklingError as error:
            plain = (bool, int, float, str, list, tuple, dict, type(None))
            objects = ", ".join(key for key, value in trial.hparams.items() if not isinstance(value, plain))
            problem = f"holds objects ({objects or 'not among self.hparams'}), so that it does not load safely"
            raise AssertionError(f"{name}: checkpoint {problem}; remove them from self.hparams") from error
        trainer.test(trial, datamodule=data, verbose=False)
        logged.update(trainer.callback_metrics)
    names = ("cacc", "asr", "ftr") if attack.makes_negatives else ("cacc", "asr")
    for metric in (f"{stage}/{metric}" for stage in ("val", "test") for metric in names):
        require(metric in logged, f"{name}: fit", f"does not log {metric}; keep the metrics of the parent class")
        value = float(logged[metric])
        require(0 <= value <= 1, f"{name}: fit", f"logs {metric} = {value}, which is not a share of rows")
