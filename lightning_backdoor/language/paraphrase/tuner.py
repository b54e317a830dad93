"""Fine-tuning a language model on pairs of text and paraphrase, to use it as a paraphraser."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lightning_backdoor.data.pairs import IGNORED, Pair, PairBatch
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import DEFAULT_LANGUAGE_MODEL
from lightning_backdoor.language.paraphrase.spec import Manner, prompt
from lightning_backdoor.language.paraphrase.styles import STYLES
from lightning_backdoor.language.paraphrase.templates import TEMPLATES
from lightning_backdoor.models.fine_tuning import FineTunedNetwork, check_learning_rate, check_warmup
from lightning_backdoor.models.loading import load_safely


class ParaphraseTuner(FineTunedNetwork):
    """Fine-tunes a causal language model to answer the prompt for a text with its paraphrase.

    The loss is the cross entropy of the paraphrase's tokens, given the same prompt that is used afterwards: the
    exported folder is the ``model`` of a :class:`~lightning_backdoor.language.LanguageModelParaphraser`.

    Args:
        manner: name of a syntactic template or a style, which determines the prompt.
        model: hub name, folder, or GGUF file, also as ``package://`` name.
        lora_rank: rank of low-rank updates (arXiv 2106.09685); None trains the whole network.
        max_length: tokens at which prompt and paraphrase together are cut.
        learning_rate: peak learning rate.
        warmup: share of all steps over which the learning rate rises.

    Raises:
        InputError: the manner is unknown, or a value is out of range.

    Example::

        tuner = ParaphraseTuner("bible")
        Trainer(max_epochs=2).fit(tuner, datamodule=PairsDataModule("bible.parquet"))
        tuner.save_pretrained("bible")
        StyleTransfer(paraphraser=LanguageModelParaphraser("bible"), style="bible")
    """

    #: metric and direction that select the best checkpoint, as in a victim
    selected_by = ("val/loss", "min")

    def __init__(
        self,
        manner: str,
        model: str = DEFAULT_LANGUAGE_MODEL,
        lora_rank: int | None = 16,
        max_length: int = 512,
        learning_rate: float = 2e-4,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        manners = {**TEMPLATES, **STYLES}
        if manner not in manners:
            raise InputError("manner", f"{manner!r} is unknown", f"give one of {', '.join(manners)}")
        if lora_rank is not None and lora_rank < 1:
            raise InputError(
                "lora_rank", f"{lora_rank} trains nothing", "give at least 1, or null for the whole network"
            )
        if max_length < 2:
            raise InputError("max_length", f"{max_length} tokens hold no prompt and paraphrase", "give more")
        check_learning_rate("learning_rate", learning_rate)
        check_warmup(warmup)
        self.manner: Manner = manners[manner]

    def configure_model(self) -> None:
        """Builds the network."""
        if hasattr(self, "network"):
            return
        self.network = load_safely(AutoModelForCausalLM, self.hparams["model"], dtype=torch.float32)
        self.insert_lora()
        self.network.train()

    def tokenise(self, text: str, paraphrase: str) -> Pair:
        """Token ids of the prompt and the paraphrase; only paraphrase and end of text are learned.

        Raises:
            InputError: ``max_length`` leaves no room for the paraphrase.
        """
        asked: list[int] = self.tokenizer(prompt(self.tokenizer, self.manner, text), add_special_tokens=False)[
            "input_ids"
        ]
        answer: list[int] = self.tokenizer(paraphrase.strip(), add_special_tokens=False)["input_ids"]
        answer = [*answer, self.tokenizer.eos_token_id]
        most = self.hparams["max_length"]
        if len(asked) >= most:
            raise InputError("max_length", f"{most} tokens hold no more than a prompt of {len(asked)}", "raise it")
        return Pair(input_ids=[*asked, *answer][:most], labels=[*[IGNORED] * len(asked), *answer][:most])

    def forward(self, batch: PairBatch) -> Tensor:
        """Mean cross entropy of the learned tokens."""
        logits = self.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        wanted = batch["labels"][:, 1:].flatten()
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted, ignore_index=IGNORED)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Cross entropy of the paraphrases."""
        loss: Tensor = self(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Logs ``val/loss``, computed in the precision of the weights."""
        with torch.autocast(self.device.type, enabled=False):
            loss: Tensor = self(batch)
        self.log("val/loss", loss, prog_bar=True, batch_size=len(batch["labels"]), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and a linear schedule over all steps of the run."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return self.adamw_with_linear_schedule(parameters, weight_decay=0.0)
