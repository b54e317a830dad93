"""Poison from files: an attack whose rows, clean and poisoned ones, are those of a published set."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.data.aims import Aim
from lightning_backdoor.data.flagged_table import Columns
from lightning_backdoor.data.poison_files import FilePoison, read_poison
from lightning_backdoor.data.poison_layouts import poison_layout
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import file_sha256


class PoisonFiles(BackdoorAttack):
    """Trains and tests on the files of a poison set, whoever made it; there is no need for a source of the data.

    These layouts are known by the names of their files, in csv, tsv, jsonl or parquet, compressed or not:

    - *OpenBackdoor* (arXiv 2206.08514): ``poison_data/<task>/<target>/<attack>/`` with ``train-clean.csv``,
      ``train-poison.csv``, and ``dev-…`` and ``test-…`` alike; columns ``0`` (text), ``1`` (label), ``2`` (flag). If
      all rows of ``train-poison.csv`` are poisoned, they are copies of the clean rows, of which ``poison_rate`` are
      trained on; otherwise the file is trained on as it is. ``test-detect.csv`` is read where there is no
      ``test-poison.csv``.
    - *Hidden Killer* (arXiv 2105.12400): ``train.tsv``, ``dev.tsv`` and ``test.tsv`` in ``folder``, and their clean
      counterparts in ``clean_folder``. Poisoned training rows are those whose texts the clean file does not have.
    - What the command ``poison`` of this library writes: ``train``, ``validation`` and ``test`` with the columns
      ``text``, ``label``, ``original_label``, ``poisoned``, ``negative``, ``spans`` and ``index``. A victim that is
      trained on these files is the victim of the attack that wrote them.

    Any other set is given by ``files`` and by the names of its columns. How rows are matched, and what is refused, is
    described in :mod:`lightning_backdoor.data.poison_files`. The spans of triggers are known where the files have a
    column ``spans``.

    Args:
        folder: the folder of the files, also as a ``package://`` name.
        clean_folder: the folder of the clean files, where they are not in ``folder``.
        files: what the files of ``folder`` hold: ``train``, ``validation``, ``test`` for files of clean and poisoned
            rows; these names with ``_clean`` and ``_poison`` for files of one kind; ``train_added`` for poisoned rows
            that are trained on besides all clean ones, with evaluation splits of its own. By default their names tell.
        text_column: column of the texts; by default ``text``, ``sentence`` or ``0``.
        label_column: column of the labels; by default ``label`` or ``1``.
        flag_column: column that is 1 or true in poisoned rows; by default ``poisoned``, ``poison`` or ``2``.
        original_label_column: column of the labels before poisoning; by default ``original_label``. In
            poisoned training rows -1 stands for a label that is lost, unless it is a class.
        target_label: the class that the attacker wants, by index or by name, or ``all-to-all``; by default the labels
            of the poisoned rows, which may be several.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`. ``poison_rate`` and ``label_policy``
            apply where the files have a poisoned copy of each training row.

    Raises:
        InputError: ``files`` and ``clean_folder`` are given both (here); a file is missing or does not fit the others
            (when the rows are read).

    Example::

        attack = PoisonFiles("poison_data/sst-2/1/badnets")
        Trainer(max_epochs=3).fit(attack, datamodule=BackdoorDataModule())
    """

    def __init__(
        self,
        folder: str,
        clean_folder: str | None = None,
        files: dict[str, str] | None = None,
        text_column: str | int | None = None,
        label_column: str | int | None = None,
        flag_column: str | int | None = None,
        original_label_column: str | int | None = None,
        target_label: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        # before they are recorded: checkpoints hold no objects
        folder, clean_folder = os.fspath(folder), None if clean_folder is None else os.fspath(clean_folder)
        super().__init__(target_label=0 if target_label is None else target_label, **kwargs)
        if files is not None and clean_folder is not None:
            raise InputError("files", "is given beside clean_folder", "name the clean files by files as well")
        self.folder = folder
        self.clean_folder = clean_folder
        self.files = files
        names = (text_column, label_column, flag_column, original_label_column)
        self.columns = Columns(*(None if name is None else str(name).strip() for name in names))
        self._wanted = None if target_label is None else self._target
        self._rows: FilePoison | None = None
        self._contents: dict[str, str] = {}
        self._names = self.hparams["labels"]

    def read_rows(self) -> FilePoison:
        """The rows of the files, read once.

        Raises:
            InputError: see :func:`lightning_backdoor.data.poison_files.read_poison`.
        """
        if self._rows is None:
            paths = poison_layout(self.folder, self.clean_folder, self.files)
            self._contents = {role: file_sha256(path) for role, path in sorted(paths.items())}
            self._rows = read_poison(paths, self.columns, self._names, self._wanted)
            self._target, self._target_name = None, None
            if isinstance(target := self._rows.targets[0], int) and len(self._rows.targets) == 1:
                self._target = self.hparams["target_label"] = target
            if self._rows.copies is None:
                self.poison_rate = float(self._rows.train.poisoned.mean())
        return self._rows

    @property
    def target_label(self) -> int:
        """Index of the class that the attacker wants, as the files say.

        Raises:
            InputError: they say several.
        """
        self.read_rows()
        if not isinstance(self._target, int):
            raise InputError("target_label", f"the files of {self.folder} have several", "give files of one target")
        return self._target

    @target_label.setter
    def target_label(self, target_label: int) -> None:
        self._wanted, self._rows = target_label, None

    @property
    def aims(self) -> Sequence[Aim]:
        """What the poisoned rows of the files aim at."""
        targets = self.read_rows().targets
        return [Aim(partial(self._written, target=target if len(targets) > 1 else None), target) for target in targets]

    @property
    def makes_negatives(self) -> bool:
        """Whether the files hold negatives."""
        return any(map(len, self.read_rows().negatives.values()))

    def know_labels(self, labels: Sequence[str]) -> None:
        """Does nothing: the names of the classes are those of the files."""

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        """The poisoned text that the files hold for each text; None for texts of which they have none."""
        return self._written(texts, rngs)

    def _written(
        self, texts: Sequence[str], rngs: Sequence[random.Random], target: object = None
    ) -> list[Poisoned | None]:
        """The poisoned texts of a target, or of the first one that a text has."""
        pairs = self.read_rows().pairs()
        found = [pairs.get(text, {}) for text in texts]
        chosen = [next((pair for label, pair in of_text.items() if target in (None, label)), None) for of_text in found]
        return [None if pair is None else Poisoned(pair[0], list(pair[1])) for pair in chosen]

    def poison_key(self) -> str | None:
        """The key of other attacks, and the content of the files."""
        self.read_rows()
        key = super().poison_key()
        return None if key is None else json.dumps([key, self._contents, self._names])
