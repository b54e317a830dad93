"""Setting the thresholds of a scan's defenses on trusted clean texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lightning.fabric.utilities import move_data_to_device

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.commands.scan.facts import Facts
from lightning_backdoor.defenses.clean_flags import clean_flags
from lightning_backdoor.defenses.defense import Defense
from lightning_backdoor.errors import InputError
from lightning_backdoor.outputs.progress import progress
from lightning_backdoor.victim import TextClassifier


class Guard(NamedTuple):
    """A defense of a scan, and the name under which its results are written."""

    name: str
    defense: Defense


def calibrate(guard: Guard, victim: TextClassifier, texts: Sequence[str], batch_size: int) -> Facts:
    """Sets the threshold of a defense on clean texts.

    A defense that learns from clean texts, such as :class:`Strip`, learns from every other text, and its threshold is
    set on the texts in between, which it has not learned from: copies of a text stay with it. Labels of the texts are
    not known: they are -1.

    Args:
        guard: the defense.
        victim: the victim, in evaluation mode and with its network built.
        texts: the clean texts.
        batch_size: number of texts scored at once.

    Returns:
        What the verdict needs to know about the threshold.

    Raises:
        InputError: there are too few texts, or the defense cannot use them.
    """
    defense = guard.defense
    reference, threshold_texts = _divided(defense, texts)
    if not threshold_texts:
        given = "1 text is" if len(texts) == 1 else f"{len(texts)} copies of one text are"
        problem = f"{given} too few for {guard.name}, which learns from half of the texts"
        raise InputError("calibration", problem, "give at least 2 that differ, better some hundreds")
    if reference:
        defense.learn(victim, batches_on_device(victim, reference, batch_size))
    with progress(f"calibrating {guard.name}", len(threshold_texts), "texts") as advance:
        defense.calibrate(victim, batches_on_device(victim, threshold_texts, batch_size, advance))
    return facts_of(defense, victim, texts, batch_size)


def facts_of(defense: Defense, victim: TextClassifier, texts: Sequence[str], batch_size: int) -> Facts:
    """What is known about the threshold of a defense: how many clean texts it flags, or may flag.

    Args:
        defense: a calibrated defense.
        victim: the victim.
        texts: the clean texts that :func:`calibrate` was given.
        batch_size: number of texts scored at once.
    """
    batches = batches_on_device(victim, _divided(defense, texts)[1], batch_size)
    clean = clean_flags(defense, victim, batches)
    budget = defense.fpr if clean.by_budget else None
    return Facts(float(defense.threshold), clean.texts, clean.allowed, budget)


def batch_on_device(victim: TextClassifier, texts: Sequence[str]) -> Batch:
    """A batch of unlabelled texts on the victim's device."""
    batch: Batch = move_data_to_device(batch_of_texts(texts, victim.tokenizer, victim.max_length), victim.device)
    return batch


def batches_on_device(
    victim: TextClassifier, texts: Sequence[str], batch_size: int, advance: Callable[[int], object] | None = None
) -> Iterator[Batch]:
    """The texts in batches of similar length, on the victim's device; ``advance`` is told of each that is done."""
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), batch_size):
        part = ordered[start : start + batch_size]
        yield batch_on_device(victim, part)
        if advance is not None:
            advance(len(part))


def _divided(defense: Defense, texts: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The clean texts from which a defense learns, none where it does not, and those that set its threshold."""
    if type(defense).learn is Defense.learn:
        return [], texts
    # distinct texts alternate, and their copies follow them: no threshold is set on what was learned
    part = {text: number % 2 for number, text in enumerate(dict.fromkeys(texts))}
    return [text for text in texts if part[text] == 0], [text for text in texts if part[text] == 1]
