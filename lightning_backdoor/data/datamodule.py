"""The data of a run: source, splits, poisoning, batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.batch import Batch
from lightning_backdoor.data.batching import TokenisedRows, loader
from lightning_backdoor.data.cleaning import DataDefense, LabelledText, TrustedRows
from lightning_backdoor.data.poisoning import PoisonedSplits, Row, Splits, clean_row, poison_splits_cached
from lightning_backdoor.data.source import LabelledTexts, Source, load_source
from lightning_backdoor.data.splitting import stratified_order, stratified_parts
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache import cache_folder
from lightning_backdoor.victim import TextClassifier


class ValidationParts(NamedTuple):
    """Disjoint parts of the clean validation rows.

    Attributes:
        selection: what validation evaluates and checkpoints are selected on.
        reference: what a defense may take statistics or reference texts from.
        threshold: what a defense's threshold is calibrated on.
    """

    selection: list[Row]
    reference: list[Row]
    threshold: list[Row]


class BackdoorDataModule(LightningDataModule):
    """Poisoned training rows, and evaluation rows as two loaders, [clean, poisoned].

    The attack is the trainer's module, or :attr:`attack` where there is no trainer; with a plain
    :class:`TextClassifier` nothing is poisoned and evaluation has one clean loader. Poisoning happens once and is kept
    in the cache under a hash of rows, attack and seed.

    Args:
        source: where texts and labels come from.
        batch_size: rows a training batch, of each process.
        eval_batch_size: rows an evaluation batch.
        max_rows: for ``train``, ``validation`` and ``test``, the most rows to use; a stratified sample is drawn.
        validation_share: share of the training rows cut off, stratified, where the source has no validation split.
        test_share: likewise for the test split.
        validation_parts: shares of the clean validation rows for selection, reference and threshold.
        seed: decides splits, samples, poison and the order of the batches.
        num_workers: worker processes a loader.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.
        data_defense: repairs or drops training rows after poisoning; it trusts the threshold rows, and knows no others.

    Raises:
        InputError: a value is out of range (here), or the source, the poisoning or the defense fails (in
            ``prepare_data``).

    Example::

        data = BackdoorDataModule(Source("reviews.csv", labels=["negative", "positive"]))
        Trainer().fit(BadNets(triggers=["cf"]), datamodule=data)
    """

    def __init__(
        self,
        source: Source,
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
    ) -> None:
        super().__init__()
        # with fewer poisoned batches than processes some have none; the metrics are summed over all processes
        self.allow_zero_length_dataloader_with_multiple_devices = True
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise InputError(name, f"{value} holds no row", "give at least 1")
        for split, most in (max_rows or {}).items():
            if split not in ("train", "validation", "test") or most < 1:
                raise InputError("max_rows", f"{split}={most}", "give train, validation or test and at least 1 row")
        for name, share in (("validation_share", validation_share), ("test_share", test_share)):
            if not 0 < share < 0.5:
                raise InputError(name, f"{share} is out of range", "give a share above 0 and below 0.5")
        if len(validation_parts) != 3 or min(validation_parts) <= 0 or abs(sum(validation_parts) - 1) > 1e-6:
            raise InputError("validation_parts", f"{validation_parts} are no three shares above 0 that add up to 1")
        self.source = source
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
        self._attack: BackdoorAttack | None = None
        self._splits: Splits | None = None
        self._is_cut = False  # known once the source is read
        self._label_names: list[str] = []
        self._poisoned: PoisonedSplits | None = None
        self._defended: tuple[list[Row], list[Row]] | None = None  # training rows before and after
        self._tokenised: dict[str, TokenisedRows] = {}

    @property
    def attack(self) -> BackdoorAttack | None:
        """What poisons the rows where there is no trainer; it comes before the trainer's module."""
        return self._attack

    @attack.setter
    def attack(self, attack: BackdoorAttack | None) -> None:
        self._attack = attack
        self._poisoned = None
        self._tokenised.clear()

    @property
    def label_names(self) -> list[str]:
        """Names of the classes in the order of their indices."""
        self.clean_splits()
        return self._label_names

    def clean_splits(self) -> Splits:
        """The clean rows of ``train``, ``validation`` and ``test``, cut and sampled; read once."""
        if self._splits is None:
            loaded = load_source(self.source)
            if loaded.left_out:
                rank_zero_info(f"{loaded.left_out} rows between {self.source.rating_cut} were left out")
            self._label_names = loaded.label_names
            rows = {name: _rows(split) for name, split in loaded.splits.items()}
            self._splits = {name: self._sample(name, split) for name, split in self._cut(rows).items()}
        return self._splits

    def _cut(self, splits: Splits) -> Splits:
        """Cuts validation and test rows off the training rows where the source has none."""
        shares = {"validation": self.validation_share, "test": self.test_share}
        missing = {name: share for name, share in shares.items() if name not in splits}
        self._is_cut = bool(missing)
        parts = _parts(splits["train"], [*missing.values(), 1 - sum(missing.values())], f"{self.seed}/splits")
        cut = {**splits, **dict(zip([*missing, "train"], parts, strict=True))}
        return {name: cut[name] for name in ("train", "validation", "test")}

    def _sample(self, name: str, rows: list[Row]) -> list[Row]:
        most = self.max_rows.get(name, len(rows))
        order = stratified_order([row["label"] for row in rows], f"{self.seed}/sample/{name}")
        return [rows[i] for i in sorted(order[:most])]

    def poisoned_splits(self) -> PoisonedSplits:
        """Clean and poisoned rows of everything; poisoned once, then read from the cache."""
        if self._poisoned is None:
            attack = self.attack
            module = getattr(self.trainer, "lightning_module", None)
            if attack is None and isinstance(module, BackdoorAttack):
                attack = module
            splits = self.clean_splits()
            self._poisoned = poison_splits_cached(splits, attack, self.seed, self.label_names, self.cache)
        return self._poisoned

    def training_rows(self) -> list[Row]:
        """The poisoned training rows as the data defense, if there is one, leaves them.

        Raises:
            InputError: it leaves none.
        """
        rows = self.poisoned_splits().train
        if self.data_defense is None:
            return rows
        if self._defended is None or self._defended[0] != rows:  # asked once, however often the data are set up
            self._defended = rows, self._defend(rows, self.data_defense)
        return self._defended[1]

    def _defend(self, rows: list[Row], defense: DataDefense) -> list[Row]:
        parts = self.clean_validation()
        trusted = TrustedRows(_labelled([*parts.selection, *parts.reference]), _labelled(parts.threshold))
        texts = defense.clean(_labelled(rows), trusted, None)
        kept = [(row, text) for row, text in zip(rows, texts, strict=True) if text is not None]
        # spans are places in the text as it was
        defended = [row if text == row["text"] else Row({**row, "text": text, "spans": []}) for row, text in kept]
        changed = sum(text != row["text"] for row, text in kept)
        name = type(defense).__name__
        rank_zero_info(f"{name} left out {len(rows) - len(kept)} of {len(rows)} training rows and changed {changed}")
        if not defended:
            raise InputError("data_defense", f"{name} leaves no training row", "loosen it")
        return defended

    def clean_validation(self) -> ValidationParts:
        """The clean validation rows in their disjoint parts.

        Raises:
            InputError: there are too few to fill every part.
        """
        rows = self.clean_splits()["validation"]
        parts = _parts(rows, self.validation_parts, f"{self.seed}/validation")
        if not all(parts):
            raise InputError(
                "validation_parts", f"{len(rows)} validation rows do not fill three parts", "use more rows"
            )
        return ValidationParts(*parts)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must know of its training rows: where they were cut off."""
        return {"source": str(self.source), "cut": [self.seed, self.validation_share, self.test_share]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses a checkpoint whose training rows may be among the rows it would be evaluated on.

        Raises:
            InputError: the same source is cut elsewhere than when the checkpoint was trained.
        """
        mine = self.state_dict()
        if self._is_cut and state_dict["source"] == mine["source"] and state_dict["cut"] != mine["cut"]:
            raise InputError(
                "seed",
                f"the rows are cut by seed, validation_share, test_share = {mine['cut']}, those of the"
                f" checkpoint by {state_dict['cut']}, so that it may have been trained on test rows",
                "give the same",
            )

    def prepare_data(self) -> None:
        """Reads, poisons, and defends what is trained on, once a node, before anything else starts."""
        self.poisoned_splits()
        self.clean_validation()
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.training_rows()

    def setup(self, stage: str) -> None:
        """Reads everything anew: the module may be another attack, or another model, than in an earlier stage."""
        self._poisoned = None
        self._tokenised.clear()
        self.prepare_data()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training batches, mixed anew each epoch."""
        rows = self.training_rows()
        batches = self._loader("train", rows, shuffle=True)
        left_out = getattr(batches.sampler, "left_out", 0)
        if left_out:
            rank_zero_info(f"{left_out} training batches an epoch are left out so that every process gets as many")
        if len(batches) == 0:
            raise InputError("batch_size", f"{len(rows)} training rows are fewer batches than processes", "lower it")
        return batches

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """[clean, poisoned] of the selection rows; the poisoned loader only under an attack."""
        clean = self.clean_validation().selection
        chosen = {row["index"] for row in clean}
        poisoned = [row for row in self.poisoned_splits().poisoned["validation"] if row["index"] in chosen]
        return self._evaluation("validation", clean, poisoned)

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """[clean, poisoned] of the test rows; the poisoned loader only under an attack."""
        splits = self.poisoned_splits()
        return self._evaluation("test", splits.clean["test"], splits.poisoned["test"])

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """As :meth:`test_dataloader`."""
        return self.test_dataloader()

    def reference_dataloader(self) -> DataLoader[Batch]:
        """Clean validation rows for a defense's statistics; every process gets all of them."""
        return self._loader("reference", self.clean_validation().reference, every_process=True)

    def threshold_dataloader(self) -> DataLoader[Batch]:
        """Clean validation rows for a defense's threshold; every process gets all of them."""
        return self._loader("threshold", self.clean_validation().threshold, every_process=True)

    def trusted_dataloader(self) -> DataLoader[Batch]:
        """Trusted clean rows, selection and reference; every process gets all of them."""
        parts = self.clean_validation()
        return self._loader("trusted", [*parts.selection, *parts.reference], every_process=True)

    def stream_dataloader(self) -> DataLoader[Batch]:
        """All test rows, clean then poisoned; every process gets all of them."""
        splits = self.poisoned_splits()
        rows = [*splits.clean["test"], *splits.poisoned["test"]]
        return self._loader("stream", rows, every_process=True)

    def _evaluation(self, name: str, clean: list[Row], poisoned: list[Row]) -> list[DataLoader[Batch]]:
        loaders = [self._loader(f"{name}/clean", clean)]
        processes = self.trainer.world_size if self.trainer else 1
        if -(-len(clean) // self.eval_batch_size) < processes:
            raise InputError(
                "eval_batch_size",
                f"{len(clean)} clean {name} rows in batches of {self.eval_batch_size} leave some of"
                f" {processes} processes without any",
                "lower it",
            )
        return [*loaders, self._loader(f"{name}/poisoned", poisoned)] if poisoned else loaders

    def _loader(
        self, name: str, rows: list[Row], shuffle: bool = False, every_process: bool = False
    ) -> DataLoader[Batch]:
        model = self._model()
        if name not in self._tokenised:
            self._tokenised[name] = TokenisedRows(rows, model.tokenizer, model.max_length)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if every_process:
            rank, world_size = 0, 1
        size = self.batch_size if shuffle else self.eval_batch_size
        return loader(self._tokenised[name], size, rank, world_size, shuffle, self.seed, self.num_workers)

    def _model(self) -> TextClassifier:
        module = getattr(self.trainer, "lightning_module", None) or self.attack
        if not isinstance(module, TextClassifier):
            raise InputError("model", f"{type(module).__name__} is no TextClassifier, whose tokenizer the batches need")
        return module


def _rows(split: LabelledTexts) -> list[Row]:
    return [clean_row(text, label, i) for i, (text, label) in enumerate(zip(split.texts, split.labels, strict=True))]


def _labelled(rows: list[Row]) -> list[LabelledText]:
    return [LabelledText(row["text"], row["label"]) for row in rows]


def _parts(rows: list[Row], shares: Sequence[float], seed: str) -> list[list[Row]]:
    """Stratified parts, rows of one text in the same part."""
    parts = stratified_parts([row["label"] for row in rows], shares, seed, [row["text"] for row in rows])
    return [[rows[i] for i in part] for part in parts]
