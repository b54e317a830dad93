"""Fine-mixing and E-PUR (arXiv 2210.09545): weights of the victim mixed with those of the clean pre-trained model.

*Embedding purification* (E-PUR): a word whose embedding moved far from the pre-trained one although the word is rare is
suspicious, since clean training moves frequent words most. With d the difference of a word's embeddings and f its
frequency in clean texts::

    suspicion = |d| / log(max(f, 20))

The most suspicious words, 200 in the paper, get their pre-trained embeddings back. *Fine-mixing*: every single weight
is the victim's with a probability, otherwise the pre-trained model's; then the mixture is fine-tuned on a few clean
texts. The head, which the pre-trained model lacks, stays the victim's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.batch import token_ids
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.names import expanded
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.files.text_files import not_utf8, open_text
from lightning_backdoor.models.config_file import STATEMENT, read_object
from lightning_backdoor.models.loading import load_network
from lightning_backdoor.victim.checkpoints import read_trained

#: frequencies up to this one count alike, as in the paper.
RARE = 20


def base_of(published: str) -> str:
    """The model that a published victim was trained from, as its checkpoint or its exported folder records it.

    Raises:
        InputError: it is not recorded, or is a folder of which only the name is recorded.
    """
    if published.endswith(".ckpt"):
        return str(read_trained(published).arguments["model"])
    statement = read_object(Path(resolve(published), "config.json"), "config.json").get(STATEMENT)
    base = statement.get("base_model") if isinstance(statement, Mapping) else None
    if not isinstance(base, str) or base.startswith("./"):
        problem = f"the model that {published} was trained from is not recorded"
        raise InputError("pretrained", problem, "give its name or folder")
    return base


def pretrained_weights(name: str, network: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a pre-trained model, by the names that they have in the backbone of a victim.

    A pooler that the pre-trained model lacks is left out.

    Args:
        name: hub name or folder.
        network: the victim's network.

    Raises:
        InputError: the model cannot be loaded, or is of another architecture or vocabulary.
    """
    try:
        loaded = load_network(AutoModel, name, dtype=torch.float32)
    except InputError as error:
        raise error.under("pretrained") from None
    own = {of: tuple(weight.shape) for of, weight in network.base_model.named_parameters()}
    weights = {of: weight.detach() for of, weight in loaded.network.named_parameters() if of in own}
    if loaded.new_head is not None:
        weights = {of: weight for of, weight in weights.items() if not of.startswith("pooler.")}
    lacking = [of for of in own if of not in weights and not of.startswith("pooler.")]
    other = [of for of, weight in weights.items() if tuple(weight.shape) != own[of]]
    if lacking or other:
        problem = f"{name} does not fit the victim ({[*lacking, *other][0]} is missing or has another shape)"
        raise InputError("pretrained", problem, "give the model that the victim was trained from")
    return weights


def word_counts(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, max_length: int, size: int) -> Tensor:
    """How often each token occurs in texts, special tokens included, (size,), float32.

    Args:
        texts: the texts.
        tokenizer: the victim's tokenizer.
        max_length: tokens at which a text is cut.
        size: number of embeddings.
    """
    counts = Counter(token for ids in token_ids([*texts], tokenizer, max_length) for token in ids)
    result = torch.zeros(size)
    for token, count in counts.items():
        result[token] = count
    return result


def corpus_lines(path: str) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        with open_text(Path(expanded(path))) as file:
            return [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError:
        raise not_utf8(Path(path)).under("corpus") from None
    except OSError:
        raise InputError("corpus", f"{path} cannot be read", "give a text file with a text per line") from None


def suspicious_words(victim: Tensor, pretrained: Tensor, counts: Tensor, number: int) -> list[int]:
    """The tokens whose embeddings moved most for their frequency, the most suspicious first.

    Args:
        victim: (vocabulary, size), the victim's word embeddings.
        pretrained: same shape, those of the pre-trained model.
        counts: (vocabulary,), frequency of each token in clean texts.
        number: number of tokens; fewer where fewer have moved.

    >>> moved = torch.tensor([[3.0], [3.0], [0.0], [2.0]])
    >>> suspicious_words(moved, torch.zeros(4, 1), torch.tensor([500.0, 3.0, 0.0, 0.0]), 3)
    [1, 3, 0]
    """
    distance = (victim.detach() - pretrained.to(victim)).float().norm(dim=1).cpu()
    suspicion = distance / counts.clamp(min=RARE).log()
    order = suspicion.argsort(descending=True, stable=True)[:number]
    return [token for token in order.tolist() if distance[token] > 0]


@torch.no_grad()
def purify_embeddings(embeddings: Tensor, pretrained: Tensor, words: Sequence[int]) -> None:
    """Gives tokens their pre-trained embeddings back.

    Args:
        embeddings: (vocabulary, size), the victim's, which are changed.
        pretrained: same shape.
        words: the tokens.
    """
    index = torch.tensor(words, dtype=torch.long)
    embeddings[index.to(embeddings.device)] = pretrained[index].to(embeddings)


@torch.no_grad()
def mix(weight: Tensor, pretrained: Tensor, keep: float, seed: int) -> None:
    """Replaces single weights by those of the pre-trained model.

    Args:
        weight: a weight of the victim, which is changed.
        pretrained: the same weight of the pre-trained model.
        keep: probability, from 0 to 1, that a number stays the victim's.
        seed: seed of the draw, which is made on the CPU, so that it does not depend on the device.
    """
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < keep
    weight.copy_(torch.where(kept.to(weight.device), weight, pretrained.to(weight)))
