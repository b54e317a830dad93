"""Checks a defense against its contract, whatever the moment at which it acts."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback
from torch import Tensor

from lightning_backdoor.batch import Batch, collate, taken, token_ids
from lightning_backdoor.callbacks import InferenceDefense, InspectionCallback
from lightning_backdoor.data.cleaning import DataDefense, LabelledText, TrustedRows, cleaned_texts
from lightning_backdoor.data.rows import clean_row
from lightning_backdoor.defenses.defense import REJECTED, Defense, Scores, judge
from lightning_backdoor.defenses.inspection import Inspection
from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.testing.material import labelled_texts, quiet, require, require_close, tiny_bert
from lightning_backdoor.testing.training import check_training
from lightning_backdoor.testing.verdict import check_verdict, same_verdicts
from lightning_backdoor.victim import TextClassifier

#: the base classes of what is checked.
KINDS: tuple[type, ...] = (Defense, DataDefense, Inspection, Callback)


def check_defense(
    defense: Defense | DataDefense | Inspection | Callback, max_epochs: int = 2, device: str = "cpu"
) -> None:
    """Checks a defense against the contract of each moment at which it acts: one call for any kind of defense.

    A :class:`DataDefense`, a :class:`Defense` and an :class:`Inspection` are checked as such, also within the callback
    that attaches them; a subclass of :class:`lightning_backdoor.callbacks.Repair` as a repair, and any other callback
    as a training-time defense.

    The rules of a :class:`lightning_backdoor.defenses.defense.Defense`: scores have the documented shapes and types and
    are finite; the score of a text depends only on the text, not on other texts of the batch, their order, labels or
    flags; the victim's weights, modes and ``requires_grad``, and the global random generators, do not change;
    ``calibrate`` sets the thresholds from the clean texts that it is given; ``purify`` returns one of the documented
    forms, the same for the same texts, whatever their labels or flags; an explanation depends on texts alone;
    ``state_dict`` contains thresholds and what was learned; everything works in ``torch.inference_mode``. Of a defense
    that studies a set: the sums do not depend on labels, flags, order or batches, and those of parts of the set add up
    to those of the whole.

    The rules of a data defense: ``clean`` returns a list of a text or None for each row, the same each time. The rules
    of an inspection: the verdict has a finite score, a label of the model or None, and evidence of plain values, all of
    which depend on texts alone, the same each time.

    The rules of a callback that trains: a ``fit`` on a tiny model with poisoned rows, or in the user's phase on trusted
    rows for a repair, leaves finite weights, the same each time with the same seed, and a checkpoint that loads without
    running code. A training-time defense sets ``training_defense`` on the victim, with plain settings; its checkpoint
    is restored under the same defense. A repair leaves a plain victim, whose checkpoint is restored without it. The
    exported model gives the logits of the checkpoint, unless the record says why it cannot be exported.

    Args:
        defense: a new defense, not yet used; it is changed by learning and calibration, except for callbacks that
            train, which are copied.
        max_epochs: number of epochs of a fit, for callbacks whose training has more phases.
        device: of victim and batches, such as ``cuda``; fits run on the processor.

    Raises:
        AssertionError: a rule is broken.
        InputError: the object is not of any of these kinds, or rejects the tiny model or its few rows.

    >>> from lightning_backdoor.defenses.strip import Strip
    >>> check_defense(Strip())
    """
    if isinstance(defense, InferenceDefense | InspectionCallback):
        defense = defense.defense if isinstance(defense, InferenceDefense) else defense.inspection
    if not isinstance(defense, KINDS):
        problem = f"{type(defense).__name__} is not a Defense, a DataDefense, an Inspection or a Callback"
        raise InputError("defense", problem, "give a defense")
    with tempfile.TemporaryDirectory() as folder, quiet():
        if isinstance(defense, Callback):
            check_training(defense, folder, max_epochs)
            return
        victim = TextClassifier(tiny_bert(folder, labels=2), labels=["negative", "positive"], max_length=64)
        victim.configure_model()
        victim.to(device).eval()
        if isinstance(defense, Defense):
            _check_inference(defense.to(device), victim)
        if isinstance(defense, DataDefense):
            _check_cleaning(defense, victim)
        if isinstance(defense, Inspection):
            _check_inspection(defense, victim)


def _batches(rows: Sequence[LabelledText], victim: TextClassifier, size: int = 4) -> list[Batch]:
    """Clean batches of the rows in their order, each padded to its longest row."""
    result = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids = token_ids([row.text for row in part], victim.tokenizer, victim.max_length)
        columns = [clean_row(row.text, row.label, start + i) for i, row in enumerate(part)]
        batch = collate([{**row, "input_ids": i} for row, i in zip(columns, ids, strict=True)], victim.tokenizer)
        result.append(move_data_to_device(batch, victim.network.device))
    return result


def _unlabelled(batch: Batch) -> Batch:
    """The same texts with other labels, flags, spans and indices, which scores must not depend on."""
    other = {name: 1 - batch[name] for name in ("label", "original_label", "index")}
    flags = {"poisoned": ~batch["poisoned"], "negative": ~batch["negative"], "spans": [[(0, 1)]] * len(batch["text"])}
    return Batch(**{**batch, **other, **flags})  # type: ignore[typeddict-item]


@contextmanager
def _victim_is_kept(victim: TextClassifier, where: str) -> Iterator[None]:
    """Checks that the block changes neither the victim nor the global random generators."""

    def state() -> list[Any]:
        parameters = [(p.detach().clone(), p.requires_grad, p.grad is None) for p in victim.parameters()]
        return [parameters, [module.training for module in victim.modules()], generator_states(victim.network.device)]

    before = state()
    yield
    after = state()
    for (old, grad, none), (new, new_grad, new_none) in zip(before[0], after[0], strict=True):
        require(torch.equal(old, new), where, "changes the victim's parameters")
        require(grad == new_grad, where, "leaves requires_grad changed on the victim")
        require(none == new_none, where, "leaves gradients on the victim's parameters")
    require(before[1] == after[1], where, "leaves the victim in another mode (train or eval)")
    require(
        before[2] == after[2], where, "draws from a global random generator; use one of its own, seeded by self.seed"
    )


@contextmanager
def _in_inference_mode(where: str) -> Iterator[None]:
    """Runs the block in inference mode, as a trainer's test does."""
    try:
        with torch.inference_mode():
            yield
    except RuntimeError as error:
        raise AssertionError(f"{where}: fails in torch.inference_mode: {reason(error)}") from error


def generator_states(device: torch.device) -> list[Any]:
    """The states of the global random generators of Python, NumPy and torch, and of that of the device, to compare."""
    of_numpy = np.random.get_state(legacy=False)
    mersenne = of_numpy["state"]
    of_torch = [torch.get_rng_state()]
    if device.type != "cpu":
        of_torch.append(torch.get_device_module(device).get_rng_state(device))
    state_of_numpy = (mersenne["key"].tolist(), mersenne["pos"], of_numpy["has_gauss"])
    return [random.getstate(), state_of_numpy, *(state.tolist() for state in of_torch)]


def _check_inference(defense: Defense, victim: TextClassifier) -> None:
    name, fresh = type(defense).__name__, copy.deepcopy(defense)
    rows = labelled_texts(60)
    reference, threshold, test = (_batches(rows[start : start + 20], victim) for start in (0, 20, 40))
    with _victim_is_kept(victim, f"{name}.learn"):
        defense.learn(victim, iter(reference))
    calibrates = type(defense).calibrate is not Defense.calibrate  # then scores may need what it sets
    if calibrates:
        with _victim_is_kept(victim, f"{name}.calibrate"):
            defense.calibrate(victim, iter(threshold))
    where = f"{name}.score"
    with _victim_is_kept(victim, where):
        scores = [defense.score(victim, batch) for batch in test]
    for batch, score in zip(test, scores, strict=True):
        _check_scores(where, score, batch, classes=2)
    expected = torch.cat([score.text for score in scores])
    with _in_inference_mode(f"{name}.learn"):
        copy.deepcopy(fresh).learn(victim, iter(reference))
    if not calibrates:
        with _victim_is_kept(victim, f"{name}.calibrate"):
            defense.calibrate(victim, iter(threshold))
    set_to = defense.threshold.clone()
    require(bool(set_to.isfinite().all()), f"{name}.calibrate", f"leaves the threshold at {set_to.tolist()}")
    budgets = defense.budget_thresholds
    require(not bool(budgets.isnan().any()), f"{name}.calibrate", f"leaves budget_thresholds at {budgets.tolist()}")
    whole = _batches(rows[40:], victim, size=20)[0]
    reverse = _batches(rows[40:][::-1], victim, size=20)[0]
    with _in_inference_mode(where):
        require_close(defense.score(victim, whole).text, expected, where, "depends on the other texts of the batch")
        require_close(defense.score(victim, reverse).text.flip(0), expected, where, "depends on the order of the texts")
    with _in_inference_mode(f"{name}.calibrate"):
        copy.deepcopy(defense).calibrate(victim, iter(threshold))
    require_close(
        defense.score(victim, _unlabelled(whole)).text, expected, where, "reads labels, flags, spans or indices"
    )
    require(torch.equal(defense.threshold, set_to), where, "changes the threshold, which only calibrate may set")
    _check_answers(name, defense, victim, whole)
    fresh.load_state_dict(copy.deepcopy(defense.state_dict()))
    require(torch.equal(fresh.threshold, set_to), f"{name}.state_dict", "does not keep the threshold")
    kept = "does not keep what was learned: a defense restored from it scores differently"
    require_close(fresh.score(victim, whole).text, expected, f"{name}.state_dict", kept)
    defense.calibrate(victim, iter(threshold))
    where = f"{name}.calibrate"
    problem = "depends on texts scored before, not on its clean texts alone"
    require_close(defense.threshold, set_to, where, problem, scale=expected)
    if defense.studies:
        _check_study(defense, fresh, victim, rows[40:])


def _check_study(defense: Defense, fresh: Defense, victim: TextClassifier, rows: Sequence[LabelledText]) -> None:
    """Checks the study of a set by a calibrated defense; ``fresh`` is another one of its class."""
    name = type(defense).__name__
    where = f"{name}.study"
    with _victim_is_kept(victim, where), torch.inference_mode():
        whole = defense.study(victim, iter(_batches(rows, victim, size=20)))
        parts = [defense.study(victim, iter(_batches(part, victim, 1))) for part in (rows[::-2], rows[-2::-2], [])]
        flagged = defense.study(victim, (_unlabelled(batch) for batch in _batches(rows, victim, size=20)))
    require(isinstance(whole, Tensor) and whole.dtype == torch.float64, where, "does not return a float64 tensor")
    require(whole.device.type == "cpu", where, f"returns sums on {whole.device}, not on the processor")
    shapes = [tuple(sums.shape) for sums in (whole, *parts)]
    require(len(set(shapes)) == 1, where, f"returns sums whose shape depends on the texts: {shapes}")
    together = torch.stack(parts).sum(dim=0)
    require_close(together, whole, where, "returns sums that depend on order, batches or processes, or do not add up")
    require_close(flagged, whole, where, "reads labels, flags, spans or indices")
    defense.adopt(whole)
    require(bool(defense.threshold.isfinite()), f"{name}.adopt", f"leaves the threshold at {float(defense.threshold)}")
    batch = _batches(rows, victim, size=20)[0]
    expected = defense.score(victim, batch).text
    fresh.load_state_dict(copy.deepcopy(defense.state_dict()))
    kept = "does not keep what was studied: a defense restored from it scores differently"
    require_close(fresh.score(victim, batch).text, expected, f"{name}.state_dict", kept)


def _check_scores(where: str, scores: Scores, batch: Batch, classes: int) -> None:
    require(isinstance(scores, Scores), where, f"answers {type(scores).__name__}, not Scores")
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {
        "text": ((len(batch["text"]),), torch.float32),
        "tokens": (tuple(batch["input_ids"].shape), torch.float32),
        "top": ((len(batch["text"]),), torch.int64),
        "logits": ((len(batch["text"]), classes), None),
        "flagged_alone": ((len(batch["text"]),), torch.bool),
    }
    for field, (shape, dtype) in shapes.items():
        value = getattr(scores, field)
        if value is not None or field == "text":
            is_right = isinstance(value, Tensor) and tuple(value.shape) == shape and dtype in (None, value.dtype)
            found = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
            require(is_right, where, f"{field} is {found}, not {shape} {dtype or 'floating point'}")
    require(bool(scores.text.isfinite().all()), where, f"text scores are not finite: {scores.text.tolist()}")
    if scores.tokens is not None:
        padding = scores.tokens[batch["attention_mask"] == 0]
        require(bool(padding.isneginf().all()), where, "tokens gives padding a score; it must be -inf there")
        require(not bool(scores.tokens.isnan().any()), where, "tokens has NaN; a token without a score is -inf")
    if scores.top is not None:
        inside = (scores.top >= -1) & (scores.top < batch["input_ids"].shape[1])
        require(bool(inside.all()), where, f"top has positions outside of the batch: {scores.top.tolist()}")


def _check_answers(name: str, defense: Defense, victim: TextClassifier, batch: Batch) -> None:
    where, size = f"{name}.purify", len(batch["text"])
    flagged = torch.arange(size, device=victim.network.device) % 2 == 0
    used: list[Any] = []
    with _victim_is_kept(victim, where), _in_inference_mode(where):
        for shown in (batch, _unlabelled(batch)):
            # scored anew, since a defense may keep what it reads in the batch for its answer
            answer: Any = defense.purify(victim, shown, flagged, defense.score(victim, shown))
            _check_answer(where, answer, size)
            used.append(_of_flagged(answer, flagged))
            finite = not isinstance(used[-1], Tensor) or bool(used[-1].isfinite().all())
            require(finite, where, "logits of flagged texts are not finite")
        judge(defense, victim, batch)
    problem = "reads labels, flags, spans or indices, or answers the same texts differently when asked again"
    if all(isinstance(answer, Tensor) for answer in used) and used[0].shape == used[1].shape:
        require_close(used[1], used[0], where, problem)
    else:
        require(not any(isinstance(answer, Tensor) for answer in used) and used[0] == used[1], where, problem)
    if defense.explains:
        _check_explanation(name, defense, victim, taken(batch, flagged))


def _check_answer(where: str, answer: Any, size: int) -> None:
    """Checks that an answer of ``purify`` has one of the documented forms."""
    if isinstance(answer, list):
        require(len(answer) == size, where, f"answers {size} rows with {len(answer)} texts")
        for text in answer:
            require(text is None or isinstance(text, str), where, f"answers {text!r:.100}, not a text or None")
    elif isinstance(answer, Tensor) and answer.is_floating_point():
        require(answer.shape == (size, 2), where, f"logits are {tuple(answer.shape)}, not (batch, classes)")
    elif isinstance(answer, Tensor):
        found = f"{tuple(answer.shape)} {answer.dtype}"
        is_right = answer.shape == (size,) and answer.dtype == torch.int64
        require(is_right, where, f"predictions are {found}, not (batch,) torch.int64")
        known = (answer >= REJECTED) & (answer < 2)
        require(bool(known.all()), where, f"predictions are neither labels nor {REJECTED}: {answer.tolist()}")
    else:
        require(answer is None, where, f"answers {type(answer).__name__}, not texts, logits, predictions or None")


def _of_flagged(answer: list[str | None] | Tensor | None, flagged: Tensor) -> list[str | None] | Tensor | None:
    """The entries of an answer of ``purify`` for the flagged rows, the only ones that are used."""
    if isinstance(answer, Tensor):
        return answer.to(flagged.device)[flagged]
    return answer and list(compress(answer, flagged.tolist()))


def _check_explanation(name: str, defense: Defense, victim: TextClassifier, batch: Batch) -> None:
    where = f"{name}.explain"
    with _victim_is_kept(victim, where), torch.inference_mode():  # as a trainer's test calls it
        try:
            found = defense.explain(victim, batch)
        except RuntimeError as error:
            raise AssertionError(f"{where}: fails in torch.inference_mode: {reason(error)}") from error
        again = defense.explain(victim, _unlabelled(batch))
    if found is None:
        return
    _check_scores(where, found, batch, classes=2)
    if found.tokens is None or again is None or again.tokens is None:
        raise AssertionError(f"{where}: scores no tokens")
    require_close(again.tokens, found.tokens, where, "reads labels, flags, spans or indices")


def _check_cleaning(defense: DataDefense, victim: TextClassifier) -> None:
    name = type(defense).__name__
    where = f"{name}.clean"
    rows, trusted = labelled_texts(12), TrustedRows(labelled_texts(20, seed=1), labelled_texts(20, seed=2))
    given = victim if defense.needs_victim else None
    with _victim_is_kept(victim, where):
        answers = [defense.clean(rows, trusted, given) for _ in range(2)]
    try:  # as in every run
        answer, again = (cleaned_texts(one, len(rows), name) for one in answers)
    except InputError as error:
        raise AssertionError(f"{error.problem}; {error.remedy}") from error
    require(answer == again, where, "answers the same rows differently when asked again")


def _check_inspection(inspection: Inspection, victim: TextClassifier) -> None:
    name, where = type(inspection).__name__, f"{type(inspection).__name__}.inspect"
    reference, threshold, clean, stream = (_batches(labelled_texts(20, seed=seed), victim) for seed in range(4))
    with _victim_is_kept(victim, name):
        inspection.learn(victim, iter(reference))
        inspection.calibrate(victim, iter(threshold))
        verdict = inspection.inspect(victim, iter(clean), iter(stream))
        again = inspection.inspect(victim, iter(clean), iter([_unlabelled(batch) for batch in stream]))
        alone = inspection.inspect(victim, iter(clean))  # a model may be judged without a stream
    for given in (verdict, again, alone):
        check_verdict(where, given)
    problem = "reads labels, flags or spans of the stream, or judges the same texts differently when asked again"
    require(same_verdicts(verdict, again), where, f"{problem}: {verdict!r:.300} and {again!r:.300}")
