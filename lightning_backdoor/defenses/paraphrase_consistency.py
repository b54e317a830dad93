"""Paraphrase consistency (ParaFuzz, arXiv 2308.02122): a paraphrase keeps the meaning of a text, but not its trigger.

The text is paraphrased by a language model, and is suspicious where the victim predicts another label for the
paraphrase, which is then the answer. Back-translation (arXiv 2105.12400) is the same defense with a
translation model, whose paraphrases can be given as a file.

The published flag is binary. Here the score is a margin, the largest logit of another label on the paraphrase minus the
logit of the label that was predicted for the text:

    y = argmax z(x),  score = max over c != y of z_c(x') - z_y(x')

It is above 0 where the prediction changes, so that the published flag is a bar at 0 (the default), which needs no
clean rows; AUROC and the thresholds of the FPR budgets come from the same scores. With ``bar=None`` the threshold is
set on clean rows.

ParaFuzz takes ChatGPT at temperature 0, and searches for the prompt that best tells some poisoned texts from clean ones
(fuzzing). The search is not part of this defense, since a user has no poisoned texts: ``prompt`` takes a prompt that
was found in another way. The published code leaves texts for which ChatGPT gives no answer out of all rates; here they
count, as texts whose paraphrase is the text itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, pad, token_ids
from lightning_backdoor.defenses.defense import Defense, Scores, Victim
from lightning_backdoor.defenses.margin import margin
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import default_device
from lightning_backdoor.language.paraphrase.by_model import LanguageModelParaphraser, Paraphraser
from lightning_backdoor.language.paraphrase.spec import Manner, repeats_itself, words_of
from lightning_backdoor.language.precision import chosen_precision
from lightning_backdoor.models.captures import plain_logits
from lightning_backdoor.models.divergence import check_logits

PROMPT = "Say the same in other, simple words."
#: shown with the default prompt, since small language models need examples.
EXAMPLES = (
    (
        "The restaurant's service was painfully slow, and the soup arrived cold.",
        "We waited for ages to be served, and then they brought us soup that was not even warm.",
    ),
    (
        "Shares of the carmaker rose on Tuesday after it reported higher profits than expected.",
        "The car company earned more than people thought it would, so its stock went up on Tuesday.",
    ),
    ("An absolute delight from start to finish.", "It made me happy all the way through."),
)


def is_paraphrase(text: str, paraphrase: str) -> bool:
    """Whether an answer has other words than its text and does not repeat itself.

    >>> is_paraphrase("a fine film", "A fine film"), is_paraphrase("a fine film", "It is a good movie.")
    (False, True)
    """
    words = words_of(paraphrase)
    return bool(words) and words != words_of(text) and not repeats_itself(words)


class ParaphraseConsistency(Defense):
    """ParaFuzz (arXiv 2308.02122): flags texts whose paraphrase gets another label, and answers with that label.

    The score is the margin of the paraphrase: the largest logit of another label minus the logit of the label that is
    predicted for the text. It is above 0 where the label changes. A score costs a paraphrase, which is cached on disk,
    and two forward passes. It depends on the text, the seed, the paraphraser and the victim. A text without an
    acceptable paraphrase, or without words, stands for itself.

    Args:
        paraphraser: the language model, with its sampling temperature, or a file of paraphrases, such as texts that
            were translated and back; by default SmolLM2 with one candidate at a time.
        prompt: the instruction to the language model; by default to say the same in other words, with examples of it.
        bar: the margin above which texts are flagged; 0 flags those whose label changes. None sets the threshold
            by ``fpr`` on clean rows.
        fpr: share of clean texts, above 0 and below 1, that the threshold may flag where ``bar`` is None.
        seed: seed of the paraphrases; None takes the seed of the run.

    Raises:
        InputError: a value is out of range (here), or a model or the cache cannot be used (later).

    Example::

        defense = ParaphraseConsistency(LanguageModelParaphraser(temperature=0.1), prompt="Talk like a politician.")
        trainer = Trainer(callbacks=[InferenceDefense(defense, name="paraphrase")])
        trainer.test(victim, datamodule=data)
    """

    def __init__(
        self,
        paraphraser: Paraphraser | None = None,
        prompt: str = PROMPT,
        bar: float | None = 0.0,
        fpr: float = 0.10,
        seed: int | None = None,
    ) -> None:
        super().__init__(fpr=fpr, seed=seed)
        if not prompt.strip():
            raise InputError("prompt", "it is empty", "say how the language model is to paraphrase")
        if bar is not None and not abs(bar) < float("inf"):
            raise InputError("bar", f"{bar} is not a margin", "give a number, such as 0, or null")
        self.paraphraser: Paraphraser = paraphraser or LanguageModelParaphraser(candidates=1)
        self.manner = Manner("paraphrase", prompt, EXAMPLES if prompt == PROMPT else (), is_paraphrase)
        self.bar = bar

    @property
    def model_precision(self) -> str | None:
        """The precision of the language model; None where the paraphraser is not one."""
        if not isinstance(self.paraphraser, LanguageModelParaphraser):
            return None
        return chosen_precision(self.paraphraser.precision, default_device())

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Sets the thresholds of the FPR budgets, and where there is no bar the threshold, on clean texts.

        Raises:
            InputError: ``clean_batches`` is empty, or a score is not finite.
        """
        super().calibrate(victim, clean_batches)
        if self.bar is not None:  # scores at or above the lowest float32 above the bar are the scores above it
            bar = torch.tensor(self.bar, dtype=torch.float32)
            self.threshold.copy_(torch.nextafter(bar, torch.tensor(torch.inf)))

    @torch.no_grad()
    def score(self, victim: Victim, batch: Batch) -> Scores:
        """Scores each text by the margin of its paraphrase against the label that is predicted for the text."""
        logits = plain_logits(victim.network, batch["input_ids"], batch["attention_mask"])
        ids = token_ids(self.paraphrases(batch["text"]), victim.tokenizer, victim.max_length)
        input_ids, mask = (tensor.to(logits.device) for tensor in pad(ids, victim.tokenizer))
        paraphrased = plain_logits(victim.network, input_ids, mask)
        check_logits(paraphrased)
        return Scores(-margin(paraphrased.float(), logits.argmax(dim=-1)), logits=logits)

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> list[str | None]:
        """Replaces flagged texts by their paraphrases."""
        flags = flagged.tolist()
        chosen = [text for text, flag in zip(batch["text"], flags, strict=True) if flag]
        paraphrases = iter(self.paraphrases(chosen))
        return [next(paraphrases) if flag else None for flag in flags]

    def paraphrases(self, texts: Sequence[str]) -> list[str]:
        """The paraphrase of each text; the text itself where there is no acceptable one."""
        asked = [text for text in texts if text.strip()]
        rngs = [random.Random(f"{self.seed or 0}/paraphrase/{text}") for text in asked]
        answers = iter(self.paraphraser.paraphrase(asked, rngs, self.manner) if asked else [])
        return [(next(answers) or text) if text.strip() else text for text in texts]
