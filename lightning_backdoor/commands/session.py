"""A session: what consecutive tests of one victim in one process share, so that each pays only for what is its own."""

from __future__ import annotations

import gc
import json
import pydoc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing torch takes seconds
    from lightning_backdoor.commands.run_cli import RunCLI
    from lightning_backdoor.victim import TextClassifier


class Session:
    """The network of a victim, the rows that were read, and what passes over them gave, kept between commands.

    Each command has a module, a data module, callbacks and a trainer of its own, and restores its checkpoint: nothing
    but what is listed above passes from one to the next. What is kept holds for one checkpoint and one config, apart
    from callbacks, loggers and folders. For any other, after a command that failed, and after a defense that left the
    network changed, everything is made anew.

    Args:
        configs: configs of the commands; if a defense in one of them reads hidden states, the first command keeps them.
    """

    def __init__(self, configs: Sequence[Mapping[str, Any]] = ()) -> None:
        self._configs = configs
        self._key: object = None
        self._victim: TextClassifier | None = None

    def _begin(self, key: object) -> None:
        from lightning_backdoor.data.kept import Kept
        from lightning_backdoor.models.captures import Captures

        self._key, self._kept, self._captures = key, Kept(), Captures()
        self._captures.hidden_states = reads_hidden_states([*self._configs])
        if self._victim is not None:
            self._victim = None
            gc.collect()  # before the next network is built

    @contextmanager
    def of(self, cli: RunCLI) -> Iterator[None]:
        """Gives a command what earlier ones have left, and keeps what it leaves at the end of the block.

        Args:
            cli: the parsed command, of which nothing has been run.
        """
        from lightning_backdoor.data import BackdoorDataModule
        from lightning_backdoor.victim import TextClassifier

        key = _key(cli)
        if key != self._key:
            self._begin(key)
        victim, data = cli.model, cli.datamodule
        if isinstance(data, BackdoorDataModule):
            data.kept = self._kept
        if isinstance(victim, TextClassifier):
            if self._victim is not None:
                victim.take_network(self._victim)
            victim.given_captures = self._captures
        kept, self._key = self._key, None  # nothing is used again that a failed command leaves
        self._victim, self._captures.intact = None, False
        yield
        if isinstance(victim, TextClassifier) and self._captures.intact:
            self._key = kept
            if victim.training_defense is None:  # its callback changes the network that it finds
                victim.given_captures = victim._trainer = None
                self._victim = victim


def reads_hidden_states(config: object) -> bool:
    """Whether a defense in a config reads hidden states; see :class:`lightning_backdoor.defenses.defense.Defense`.

    >>> reads_hidden_states({"defense": {"class_path": "lightning_backdoor.defenses.Strip"}})
    False
    """
    from lightning_backdoor.defenses.defense import Defense

    if isinstance(config, list):
        return any(map(reads_hidden_states, config))
    if not isinstance(config, dict):
        return False
    try:
        named = pydoc.locate(str(config.get("class_path", "")))
    except pydoc.ErrorDuringImport:  # reported in the test that needs it
        named = None
    reads = isinstance(named, type) and issubclass(named, Defense) and "hidden_states" in named.reads
    return reads or any(map(reads_hidden_states, config.values()))


def _key(cli: RunCLI) -> object:
    """All that determines victim and data of a command."""
    config: dict[str, Any] = json.loads(cli.parser.dump(cli.config, format="json", skip_validation=True))
    for name in ("run_dir", "ckpt_path", "config"):
        config.pop(name, None)
    for name in ("callbacks", "logger"):
        config["trainer"].pop(name, None)
    return config, None if cli.checkpoint is None else _state_of(cli.checkpoint)


def _state_of(file: Path) -> tuple[object, ...]:
    status = file.stat()
    return str(file), status.st_size, status.st_mtime_ns, status.st_ino
