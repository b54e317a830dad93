"""The names of a run in Weights & Biases, within its limits: the same for a command and for a grid."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypedDict

from lightning_backdoor.errors import escaped

#: W&B's limits in characters; it refuses longer ones.
LONGEST = {"project": 128, "name": 128, "group": 128, "job_type": 64}
LONGEST_TAG = 64
#: characters that the name of a project must not have.
FORBIDDEN = "/\\#?%:"


class RunNames(TypedDict):
    """Arguments of ``wandb.init`` by which runs are named and grouped."""

    name: str
    group: str
    job_type: str
    tags: list[str]


def run_names(parts: Sequence[str], seed: object, job_type: str, tags: Sequence[str] = ()) -> RunNames:
    """The names of a run, cut to W&B's limits: the name keeps the seed, and a hash keeps what is cut distinct.

    Args:
        parts: dataset, model and attack, by which runs are grouped, then the defense; or any other names. Empty ones
            are left out.
        seed: the run's seed; None without one.
        job_type: ``train``, or the name of the defense that is tested.
        tags: tags in addition to the parts and the seed.

    >>> run_names(["sst2", "minilm", "badnets", ""], 3, "train")["name"]
    'sst2 / minilm / badnets / seed 3'
    """
    shown = [part for part in parts if part]
    ends = [] if seed is None else [f"seed {seed}"]
    end = f" / {ends[0]}" if ends else ""
    return {
        "name": shortened(" / ".join([*shown, *ends]), LONGEST["name"], end),
        "group": shortened("/".join([*shown, *ends][:3]), LONGEST["group"]),
        "job_type": shortened(job_type, LONGEST["job_type"]),
        "tags": [*dict.fromkeys(shortened(tag, LONGEST_TAG) for tag in (*shown, *ends, *tags))],
    }


def shortened(name: str, limit: int, end: str = "") -> str:
    """A name of at most ``limit`` characters: a longer one is cut before ``end``, and a hash keeps it distinct.

    >>> shortened("reviews / tiny", 14), shortened("a" * 99 + " / seed 3", 30, " / seed 3")
    ('reviews / tiny', 'aaaaaaaaaaaa~aa2defc2 / seed 3')
    """
    name = escaped(name)
    if len(name) <= limit:
        return name
    mark = f"~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{name[: limit - len(mark) - len(end)]}{mark}{end}"
