"""Which tokens a victim's answer depends on: attention of the token that the head reads, times gradient."""

from __future__ import annotations

from lightning_backdoor.batch import Batch, Victim
from lightning_backdoor.defenses.defense import Scores
from lightning_backdoor.defenses.gradient_attention import kept_vocabulary, token_scores
from lightning_backdoor.defenses.readout_attention import readout_attention_and_gradient


def readout_token_scores(victim: Victim, batch: Batch) -> Scores:
    """Scores of tokens by the formula of X-GRAAD (arXiv 2510.04347), ``(r - mean r) * g / mean g``.

    In place of the attention that a token receives from all tokens, r is what it receives from the token that the head
    reads, averaged over layers and heads; g is the norm of the gradient of the predicted class's logit. All occurrences
    of a token get its largest r and g, see :func:`lightning_backdoor.defenses.gradient_attention.token_scores`. One
    forward and one backward pass.

    Args:
        victim: the model under attack.
        batch: texts, on the victim's device.

    Raises:
        InputError: the victim's attention has keys beside those of the text.

    Example::

        scores = readout_token_scores(victim, batch)
        scores.tokens  # (batch, length), -inf at padding, special tokens, stop words and punctuation
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    attention, gradient = readout_attention_and_gradient(victim.network, ids, mask)
    kept = kept_vocabulary(victim.tokenizer).to(ids.device)[ids] & mask.bool()
    return token_scores(attention, gradient, ids, kept)
