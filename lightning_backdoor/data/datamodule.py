"""The data of a run: source, splits, poisoning, cleaning, batches."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from lightning_backdoor.batch import Batch, Victim
from lightning_backdoor.data.argument_checks import check_arguments, check_cut, check_processes, check_use, given_source
from lightning_backdoor.data.batching import BatchReader, TokenisedRows, is_batch_reader, loader
from lightning_backdoor.data.clean_splits import CleanSplits, ValidationParts, read_clean_splits, split_validation
from lightning_backdoor.data.cleaning import CleaningRecord, DataDefense, TrustedRows, clean_training, load_victim
from lightning_backdoor.data.cut_triggers import TriggerCheck, splits_read
from lightning_backdoor.data.file_splits import FileSplits, files_folder, rows_from_files
from lightning_backdoor.data.kept import Kept
from lightning_backdoor.data.poisoner import Poisoner, is_poisoner, poisoned_by
from lightning_backdoor.data.poisoning import PoisonedSplits, Splits, poison_splits_cached, study_training
from lightning_backdoor.data.preview import Preview, preview_rows
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.data.source import SEPARATOR, Source
from lightning_backdoor.data.splitting import mixed
from lightning_backdoor.data.trained_texts import TRUSTED_TEXTS, check_trusted_texts, record_of, united
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache import cache_folder


class BackdoorDataModule(LightningDataModule):
    """The data of a run: poisoned training rows, and evaluation rows as loaders: clean, poisoned, negatives.

    The attack is the trainer's module, or :attr:`attack` if there is no trainer. With a plain
    :class:`~lightning_backdoor.victim.TextClassifier` nothing is poisoned, and evaluation has only the clean loader;
    the loader of negatives exists only for attacks that make negatives. Poisoning is done once and cached under a hash
    of rows, attack and seed.

    Args:
        source: the source of texts and labels; needed unless the attack brings its rows, as ``PoisonFiles`` does.
        batch_size: rows per training batch and process.
        eval_batch_size: rows per evaluation batch.
        max_rows: maximum number of rows for ``train``, ``validation`` and ``test``, drawn as a stratified sample.
        validation_share: share of the training rows cut off, stratified, if the source has no validation split.
        test_share: likewise for the test split.
        validation_parts: shares of the clean validation rows for selection, reference and threshold.
        seed: seed of splits, samples, poisoning and the order of the batches.
        num_workers: worker processes per loader.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.
        data_defense: repairs or removes training rows after poisoning, before anything is trained on them.
        victim: for a data defense that needs one, a victim of the same model, trained on the same rows: an exported
            model folder, or a run's checkpoint (``.ckpt``), which is rejected if its rows were cut differently.
        train_on: the rows to train on: ``train``, or ``trusted``, the clean selection and reference rows, which no
            attack poisons. Validation then reads rows that are trained on, so that ``fit`` keeps the last epoch as the
            best.

    Attributes:
        module: the module that reads the batches if there is neither a trainer nor an attack.
        kept: what has been read, poisoned and tokenised. A data module that is given the one of another does not read
            again what is the same for both.
        cleaning: record of the data defense, available once training rows have been requested; None without a defense.

    Raises:
        InputError: a value is out of range (here), or the source, the poisoning or the defense fails (in
            ``prepare_data``).

    Example::

        data = BackdoorDataModule(Source("reviews.csv", labels=["negative", "positive"]))
        Trainer().fit(BadNets(triggers=["cf"]), datamodule=data)
    """

    def __init__(
        self,
        source: Source | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        max_rows: dict[str, int] | None = None,
        validation_share: float = 0.1,
        test_share: float = 0.2,
        validation_parts: tuple[float, float, float] = (0.4, 0.2, 0.4),
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
        data_defense: DataDefense | None = None,
        victim: str | None = None,
        train_on: Literal["train", "trusted"] = "train",
    ) -> None:
        super().__init__()
        # with fewer poisoned batches than processes some have none; the metrics are summed over all processes
        self.allow_zero_length_dataloader_with_multiple_devices = True
        sizes, shares = (batch_size, eval_batch_size), (validation_share, test_share)
        check_arguments(source, sizes, max_rows or {}, shares, validation_parts, train_on, data_defense, num_workers)
        self.source = source or Source("")  # of which nothing is read
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.max_rows = max_rows or {}
        self.validation_share = validation_share
        self.test_share = test_share
        self.validation_parts = validation_parts
        self.seed = seed
        self.num_workers = num_workers
        self.cache = cache_folder(cache_dir)
        self.data_defense = data_defense
        self.victim = victim
        self.train_on = train_on
        self.module: object | None = None
        self.cleaning: CleaningRecord | None = None
        self._attack: Poisoner | None = None
        self.kept = Kept()
        self._poisoned = Kept()  # until attack or stage are others
        self._cleaned: tuple[object, Rows] | None = None  # what determines the cleaned training rows, and these
        self._trigger_check = TriggerCheck()
        self._trusted_before = ""  # record of the trusted texts of the checkpoint that was loaded

    @property
    def attack(self) -> Poisoner | None:
        """The attack that poisons the rows if there is no trainer; takes precedence over the trainer's module."""
        return self._attack

    @attack.setter
    def attack(self, attack: Poisoner | None) -> None:
        self._attack = attack
        self._poisoned = Kept()

    @property
    def files_folder(self) -> str | None:
        """The folder from whose files the attack brings the rows; None if the source gives them."""
        return files_folder(self._poisoner())

    def _shares(self) -> dict[str, float]:
        return {"validation": self.validation_share, "test": self.test_share}

    def _from_files(self) -> FileSplits | None:
        return rows_from_files(self._poisoner(), self.kept, self._shares(), self.max_rows, self.seed)

    def _read(self) -> CleanSplits:
        if (from_files := self._from_files()) is not None:
            return from_files.clean
        source = given_source(self.source, self._poisoner())
        if source.joined_by == SEPARATOR:
            source = source.with_separator(self._reader().tokenizer)
        decided_by = deepcopy((source, self._shares(), self.max_rows, self.seed))  # all but the seed may be changed
        return self.kept.get("clean", decided_by, lambda: read_clean_splits(*decided_by))

    @property
    def label_names(self) -> list[str]:
        """Names of the classes in the order of their indices."""
        return self._read().label_names

    def clean_splits(self) -> Splits:
        """The clean rows of ``train``, ``validation`` and ``test``, cut and sampled; read once."""
        return self._read().splits

    def poisoned_splits(self) -> PoisonedSplits:
        """Clean and poisoned rows of every split; poisoned once, then read from the cache."""
        clean = self._read()
        return self._poisoned.get("poisoned", clean, lambda: self._poison(clean))

    def _poison(self, clean: CleanSplits) -> PoisonedSplits:
        if (from_files := self._from_files()) is not None:
            return from_files.poisoned
        splits, attack, names = clean.splits, self._poisoner(), clean.label_names
        study_training(splits["train"], attack, self.seed, names)  # also where poisoned rows are kept
        decided_by = ({**splits}, poisoned_by(attack), self.seed, [*names])
        return self.kept.get(
            "poisoned", decided_by, lambda: poison_splits_cached(splits, attack, self.seed, names, self.cache)
        )

    def _poisoner(self) -> Poisoner | None:
        module = getattr(self.trainer, "lightning_module", None)
        return self.attack or (module if is_poisoner(module) else None)

    def preview(self, rows: int = 5, attack: Poisoner | None = None) -> Preview:
        """The first training rows, and what an attack makes of them; needs neither a trainer nor a network.

        Args:
            rows: number of rows.
            attack: the attack; by default :attr:`attack`, or the trainer's module. Without one, nothing is poisoned.

        Returns:
            A list of :class:`~lightning_backdoor.data.preview.PreviewRow`, printed in full with the trigger marked.

        Example::

            data.preview(5, BadNets(triggers=["cf"]))
        """
        training, attack = self.clean_splits()["train"], attack or self._poisoner()
        return preview_rows(training, attack, self.label_names, self.seed, max(rows, 0))

    def training_rows(self) -> Rows:
        """The rows to train on: poisoned rows, cleaned if there is a data defense, or the trusted rows.

        Raises:
            InputError: the defense's victim is missing, not usable or not needed, or its result is not usable or empty.
        """
        check_use(self.victim, self.data_defense)
        if self.train_on == "trusted":
            return self.trusted_rows()
        rows = self.poisoned_splits().train
        if self.data_defense is None:
            return rows
        decided_by = rows, self.clean_validation(), self.data_defense, self.victim
        if self._cleaned is None or self._cleaned[0] != decided_by:  # clean once, however often setup is called
            self._cleaned = decided_by, self._cleaned_by(self.data_defense, rows)
        return self._cleaned[1]

    def trusted_rows(self) -> Rows:
        """The clean selection and reference rows, in this order."""
        parts = self.clean_validation()
        return parts.selection + parts.reference

    def _cleaned_by(self, defense: DataDefense, rows: Rows) -> Rows:
        trusted = TrustedRows.of(self.trusted_rows(), self.clean_validation().threshold)
        victim = self._victim_of(defense) if defense.needs_victim else None
        cleaned, self.cleaning = clean_training(rows, defense, trusted, victim)
        return cleaned

    def _victim_of(self, defense: DataDefense) -> Victim:
        """Loads the victim that a data defense uses, onto the trainer's device if there is a trainer."""
        device = self.trainer.strategy.root_device if self.trainer else None
        return load_victim(defense, self._reader(), self.victim, device, self.check_state, self.label_names)

    def check_cleaning(self) -> None:
        """Checks, before a trainer exists, that the training rows can be produced.

        If the defense needs a victim, only it is loaded and checked; rows are cleaned later, on the trainer's device.

        Raises:
            InputError: see :meth:`training_rows`.
        """
        if self.data_defense is not None and self.data_defense.needs_victim:
            self._victim_of(self.data_defense)
        else:
            self.training_rows()

    def clean_validation(self) -> ValidationParts:
        """The disjoint parts of the clean validation rows.

        Raises:
            InputError: there are too few rows to fill every part.
        """
        return split_validation(self.clean_splits()["validation"], self.validation_parts, self.seed)

    @property
    def rows_hash(self) -> str:
        """Hash of all rows of the source, or of an attack's files, before any are cut or sampled."""
        return self._read().given

    def state_dict(self) -> dict[str, Any]:
        """The state for checkpoints: how the training rows were cut, and which trusted texts are trained on."""
        known_by = {"source": self.files_folder or str(self.source), "cut": [self.seed, *self._shares().values()]}
        trusted = record_of(self.trusted_rows().text) if self.train_on == "trusted" else ""
        record = united(self._trusted_before, trusted)
        return known_by | self._read().text_hashes | ({TRUSTED_TEXTS: record} if record else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Rejects a checkpoint, see :meth:`check_state`; a fit from it keeps its record of trusted texts.

        Raises:
            InputError: see :meth:`check_state`.
        """
        self.check_state(state_dict)
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._trusted_before = str(state_dict.get(TRUSTED_TEXTS, ""))

    def check_state(self, state_dict: dict[str, Any]) -> None:
        """Rejects a checkpoint whose training rows may overlap with evaluation or threshold rows.

        Args:
            state_dict: the state of the data module that the checkpoint records.

        Raises:
            InputError: the same source was cut differently then, so that its rows would be evaluated or set thresholds.
        """
        mine = self.state_dict()
        if self._read().is_cut:
            check_cut(mine, state_dict)
        if mine["source"] == state_dict.get("source"):  # other sources may have a text in common by chance
            check_trusted_texts(state_dict, self.clean_validation().threshold)

    def prepare_data(self) -> None:
        """Reads and poisons all rows, and cleans the training rows before a fit; called once per node, first."""
        self.poisoned_splits()
        self.clean_validation()
        if self.trainer is not None:
            self.check_triggers(names := splits_read(self.trainer.state.fn))
            if "train" in names:
                self.training_rows()

    def check_triggers(self, splits: Sequence[str] = ("train", "validation", "test")) -> None:
        """Warns about poisoned rows whose trigger the victim does not read; see :class:`TriggerCheck`."""
        names = [name for name in splits if name != "train" or self.train_on == "train"]
        self._trigger_check(self.poisoned_splits(), names, self._reader())

    def setup(self, stage: str) -> None:
        """Poisons and tokenises anew what attack or model make different from an earlier stage."""
        self._poisoned, self._trusted_before = Kept(), ""
        self.prepare_data()
        if stage == "fit" and self.trainer is not None and self._cleaned is not None:
            decided_by, cleaned = self._cleaned  # devices may differ in the last digits: the first process decides
            cleaned, self.cleaning = self.trainer.strategy.broadcast((cleaned, self.cleaning))
            self._cleaned = decided_by, cleaned

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training batches, shuffled anew each epoch."""
        rows = self.training_rows()
        batches = self._loader("train", rows, shuffle=True)
        if left_out := getattr(batches.sampler, "left_out", 0):
            rank_zero_info(f"{left_out} training batches per epoch are left out so that every process gets as many")
        if len(batches) == 0:
            raise InputError("batch_size", f"{len(rows)} training rows are fewer batches than processes", "lower it")
        return batches

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Loaders [clean, poisoned, negatives] of the selection rows; the last two only if an attack makes them."""
        parts, splits = self.clean_validation(), self.poisoned_splits()
        poisoned, negatives = (parts.without_others(rows["validation"]) for rows in (splits.poisoned, splits.negatives))
        return self._evaluation("validation", parts.selection, poisoned, negatives)

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Loaders [clean, poisoned, negatives] of the test rows; the last two only if an attack makes them."""
        splits = self.poisoned_splits()
        return self._evaluation("test", splits.clean["test"], splits.poisoned["test"], splits.negatives["test"])

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """The same loaders as :meth:`test_dataloader`."""
        return self.test_dataloader()

    def reference_dataloader(self) -> DataLoader[Batch]:
        """Clean validation rows for a defense's statistics; every process gets all of them."""
        return self._loader("reference", self.clean_validation().reference, every_process=True)

    def selection_dataloader(self) -> DataLoader[Batch]:
        """Clean selection rows, such as for the accuracy checks of a repair; every process gets all of them."""
        return self._loader("selection", self.clean_validation().selection, every_process=True)

    def threshold_dataloader(self) -> DataLoader[Batch]:
        """Clean validation rows for a defense's threshold; every process gets all of them."""
        return self._loader("threshold", self.clean_validation().threshold, every_process=True)

    def trusted_dataloader(self) -> DataLoader[Batch]:
        """The trusted rows, selection and reference; every process gets all of them."""
        return self._loader("trusted", self.trusted_rows(), every_process=True)

    def stream_dataloader(self) -> DataLoader[Batch]:
        """All test rows, clean and poisoned ones mixed; every process gets all of them."""
        splits = self.poisoned_splits()
        rows = splits.clean["test"] + splits.poisoned["test"]
        return self._loader("stream", rows.take(mixed(len(rows), f"{self.seed}/stream")), every_process=True)

    def _evaluation(self, name: str, clean: Rows, poisoned: Rows, negatives: Rows) -> list[DataLoader[Batch]]:
        loaders = [self._loader(f"{name}/clean", clean)]
        check_processes(name, len(clean), self.eval_batch_size, self.trainer.world_size if self.trainer else 1)
        others = {"poisoned": poisoned, "negatives": negatives}
        return loaders + [self._loader(f"{name}/{kind}", rows) for kind, rows in others.items() if rows]

    def _loader(self, name: str, rows: Rows, shuffle: bool = False, every_process: bool = False) -> DataLoader[Batch]:
        reader = self._reader()
        decided_by = (rows, reader.tokenizer, reader.max_length)
        tokenised = self.kept.get(f"tokens of {name}", decided_by, lambda: TokenisedRows(*decided_by))
        trainer = None if every_process else self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        size = self.batch_size if shuffle else self.eval_batch_size
        return loader(tokenised, size, rank, world_size, shuffle, self.seed, self.num_workers)

    def _reader(self) -> BatchReader:
        module = getattr(self.trainer, "lightning_module", None) or self.attack or self.module
        if not is_batch_reader(module):
            problem = f"{type(module).__name__} has no tokenizer for the batches"
            raise InputError("model", problem, "give a TextClassifier")
        return module
