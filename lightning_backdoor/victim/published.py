"""Published victims: trained checkpoints from which a user's fit starts, and the checks of their labels and rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_backdoor.data.label_values import check_victim_labels
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim.checkpoints import TrainedVictim, read_trained


def read_published(path: str, label_names: Sequence[str] | None) -> TrainedVictim:
    """Reads a published victim and makes all checks that need no network.

    Args:
        path: path of a run's checkpoint, or of an exported model folder, which has no learned trigger.
        label_names: names of the labels that the victim must have; None skips this check.

    Raises:
        InputError: the victim cannot be read, was trained under a training-time defense, or has other labels; of a
            folder, more, fewer, or the same in another order.
    """
    try:
        trained = read_trained(path)
    except InputError as error:
        raise error.under("published") from None
    published_names = trained.arguments["labels"]
    if trained.state is None:  # a folder, of whoever made it, may have other names for the same labels
        check_victim_labels(published_names, label_names, "published")
    elif label_names is not None and list(label_names) != published_names:
        raise InputError(
            "published", f"{path} has the labels {published_names}, not {list(label_names)}", "give another"
        )
    return trained


def check_rows(trained: TrainedVictim, data: Any) -> None:
    """Rejects a published victim that may have been trained on rows of this fit's validation or test splits.

    Args:
        trained: the published victim.
        data: the data module of the fit; an object that cannot load a state is not checked.

    Raises:
        InputError: the same source was cut differently when the victim was trained.
    """
    if trained.trained_on is not None and hasattr(data, "load_state_dict"):
        try:
            data.load_state_dict(trained.trained_on)
        except InputError as error:
            raise error.under("published") from None
