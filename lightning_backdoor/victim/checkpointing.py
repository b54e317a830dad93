"""The checkpoint half of the victim: what its checkpoints record, and what is refused when one is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_backdoor.data.label_values import check_victim_labels
from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.models.config_file import label_names
from lightning_backdoor.models.weights import NewHead
from lightning_backdoor.victim.checkpoints import described, load_state, same_defense
from lightning_backdoor.victim.evaluation import EvaluatedClassifier
from lightning_backdoor.victim.provenance import rows_of
from lightning_backdoor.victim.training_defense import TrainingDefense

#: the arguments that belong to the network of a victim, whatever the attack.
OF_NETWORK = ("model", "labels", "max_length", "lora_rank")
#: the repair of a fit in the user's phase without a callback that repairs.
FINE_TUNING = "fine-tuning"


def untrained_remedy(published: str | None) -> str:
    """What to give instead of a model whose head is random: ``published`` is where a fit starts, and is not tested."""
    checkpoint = published if published and published.endswith(".ckpt") else "RUN/checkpoints/best.ckpt"
    return f"give the checkpoint of a run (--ckpt_path {checkpoint}) or a model fine-tuned on these classes"


class CheckpointedClassifier(EvaluatedClassifier):
    """Base of :class:`lightning_backdoor.victim.TextClassifier` that saves and loads checkpoints.

    Attributes:
        training_defense: record of the training-time defense, set by its callback; None without one.
        new_head: why the head that the network was built with cannot classify; None if it can, or once a checkpoint is
            loaded or training has begun.
        trained_on: after ``load_trained``, the state of the data module that a checkpoint was trained with; None if
            it is not recorded.
        training_rows: the training rows of the last fit, counted; see
            :func:`lightning_backdoor.victim.provenance.rows_of`.
        training_precision: the precision of the last fit, such as ``bf16-mixed``.
        repair: how the last fit repaired a published victim: its repair, with settings, which names itself, or
            ``fine-tuning``; None after a fit that started from no published victim.
    """

    def __init__(self) -> None:
        super().__init__()
        self.training_defense: TrainingDefense | None = None
        self.new_head: NewHead | None = None
        self.is_as_published = False  # whether the weights are those of ``model``, and are evaluated as they are
        self.max_length = 0
        self.trained_on: dict[str, Any] | None = None
        self.training_rows: dict[str, Any] | None = None
        self.training_precision: str | None = None
        self.repair: str | None = None
        self._random_states: dict[str, Tensor] = {}

    def take_network(self, trained: CheckpointedClassifier) -> None:
        """Takes network, labels and tokenizer of another victim, which keeps them, instead of building a network.

        Weights of this module's own, such as those of an attack, are still made by ``configure_model``.
        """
        self.network = trained.network
        self.hparams.update({argument: trained.hparams[argument] for argument in OF_NETWORK})
        self.max_length, self.new_head = trained.max_length, trained.new_head
        self.training_defense, self.trained_on = trained.training_defense, trained.trained_on
        self._tokenizer = trained.tokenizer
        self.build_metrics()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Records the training-time defense, validation metrics, and the generators from which dropout draws."""
        super().on_save_checkpoint(checkpoint)
        defense = self.training_defense
        recorded = None if defense is None else {"name": defense.name, "settings": defense.settings}
        checkpoint["training_defense"] = recorded
        if self._trainer is not None:
            logged = {name: float(value) for name, value in self._trainer.callback_metrics.items()}
            metrics = {name: value for name, value in logged.items() if name.startswith("val/")}
            checkpoint["validation_metrics"] = {name: value for name, value in metrics.items() if math.isfinite(value)}
        checkpoint["random_states"] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            checkpoint["random_states"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rejects a checkpoint of other labels, or of another training-time defense than the attached one.

        Raises:
            InputError: the checkpoint was trained under another training-time defense, or only one of the two has one;
                or its labels are more, fewer or in another order.
        """
        recorded_arguments = checkpoint.get("hyper_parameters")
        if isinstance(recorded_arguments, dict):
            check_victim_labels(recorded_arguments.get("labels"), self.hparams["labels"], "checkpoint")
        recorded = checkpoint.get("training_defense")
        if not same_defense(recorded, self.training_defense):
            trained_under = described(recorded) or "no training-time defense"
            raise InputError(
                "checkpoint",
                f"trained under {trained_under}, but {self.training_defense or 'none'} is attached",
                "attach the same callback, or give the run's exported model folder",
            )
        self._random_states = checkpoint.get("random_states", {})
        self.new_head = None
        self.is_as_published = False

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights as torch does.

        Raises:
            InputError: they do not fit the network.
        """
        loaded = load_state(self, state_dict, "the checkpoint", strict, assign)
        if strict:  # with a head, then
            self.new_head = None
        self.is_as_published = False
        return loaded

    def on_train_start(self) -> None:
        """Records how it is trained, and says that the head is new; in a resumed run, restores the random generators.

        With several processes the generators are restored from the state of the first.
        """
        super().on_train_start()
        self.training_rows = rows_of(getattr(self.trainer, "datamodule", None))
        self.training_precision = str(self.trainer.precision)
        self.repair = None if self.hparams.get("published") is None else FINE_TUNING
        if self.new_head is not None:
            rank_zero_info(f"{self.hparams['model']} {self.new_head.problem}: the head is trained for this data")
            self.new_head = None
        states, self._random_states = self._random_states, {}
        try:
            if "cpu" in states:
                torch.set_rng_state(states["cpu"].cpu())
            if "cuda" in states and self.device.type == "cuda":
                torch.cuda.set_rng_state(states["cuda"].cpu(), self.device)
        except (AttributeError, RuntimeError, TypeError) as error:
            problem = f"its random_states are not those of a generator ({reason(error, 100)})"
            raise InputError("checkpoint", problem, "it is damaged, or not of this library") from None

    def labels_of_model(self) -> list[str]:
        """The names that the model itself has for its labels.

        Raises:
            InputError: its configuration cannot be loaded, or a label has no name of its own.
        """
        return label_names(self.load_config(), self.hparams["model"])

    def check_published(self) -> None:
        """Checks that the model, which is evaluated as it is, has the classes of the data.

        Raises:
            InputError: its labels are more, fewer or in another order.
        """
        check_victim_labels(self.labels_of_model(), self.hparams["labels"], "model")

    def on_validation_start(self) -> None:
        """Outside of a fit, checks the head; see :meth:`on_test_start`."""
        super().on_validation_start()
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._check_head()

    def on_test_start(self) -> None:
        """Checks that the head is trained.

        Raises:
            InputError: no checkpoint was loaded, and the model has no head for these classes, so that it is random.
        """
        super().on_test_start()
        self._check_head()

    def on_predict_start(self) -> None:
        """Checks the head; see :meth:`on_test_start`."""
        super().on_predict_start()
        self._check_head()

    def _check_head(self) -> None:
        if self.new_head is None:
            if self.is_as_published:
                self.check_published()
            return
        problem = f"{self.hparams['model']} {self.new_head.problem}: nothing trained would be measured"
        raise InputError("model", problem, untrained_remedy(self.hparams.get("published")))
