"""The names that a command gives to Weights & Biases, checked against its limits before anything is trained."""

from __future__ import annotations

from jsonargparse import Namespace

from lightning_backdoor.errors import InputError

#: W&B's limits in characters. A grid's own names are cut to them; those that the user chose are refused.
LONGEST = {"project": 128, "name": 128, "group": 128, "job_type": 64}
LONGEST_TAG = 64
#: characters that the name of a project must not have.
FORBIDDEN = "/\\#?%:"


def check_wandb_names(logger: Namespace) -> None:
    """Checks the names that a ``WandbLogger`` of the options is given, which fails on wrong ones as training begins.

    Raises:
        InputError: a name or tag is longer than W&B takes, or a project's name has a character that it does not take.
    """
    given = {**vars(logger.get("init_args") or Namespace()), **(logger.get("dict_kwargs") or {})}  # type: ignore[no-untyped-call]
    for name, longest in LONGEST.items():
        value = given.get(name)
        if isinstance(value, str) and len(value) > longest:
            problem = f"{value[:40]!r}… has {len(value)} characters"
            raise InputError(f"trainer.logger.{name}", problem, f"give at most {longest}")
    project = given.get("project")
    if isinstance(project, str) and set(project) & set(FORBIDDEN):
        raise InputError("trainer.logger.project", f"is {project!r}", f"give none of {' '.join(FORBIDDEN)}")
    for tag in given.get("tags") or ():
        if not 1 <= len(str(tag)) <= LONGEST_TAG:
            problem = f"{str(tag)[:40]!r} has {len(str(tag))} characters"
            raise InputError("trainer.logger.tags", problem, f"give 1 to {LONGEST_TAG}")
