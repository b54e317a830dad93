"""BITE: words that correlate with the target label, written into texts of that label (Yan et al., arXiv 2205.12700)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.insertion import check_list
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.attacks.trigger_words import Editor, TrainingTexts, find_trigger_words, write_words
from lightning_backdoor.attacks.word_edits import Edit, EditedText, edits_at, substitutions
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.cache import cache_folder
from lightning_backdoor.language.language_model import model_identity
from lightning_backdoor.language.masked_words import MaskedLanguageModel
from lightning_backdoor.language.paraphrase.by_model import NotCached
from lightning_backdoor.language.public_encoder import DEFAULT_ENCODER
from lightning_backdoor.language.similarity import SentenceEncoder
from lightning_backdoor.language.synonyms import Synonyms
from lightning_backdoor.language.text_cache import TextCache
from lightning_backdoor.outputs.progress import progress

if TYPE_CHECKING:
    from lightning_backdoor.data.rows import Rows

TEXTS_AT_ONCE = 32  # texts between two writes to the cache


class BITE(BackdoorAttack):
    """Writes words into training texts of the target label until these words predict the label; labels are kept.

    The bias of a word w is its z-score (section 3). Of n training texts that contain w, a share p has the target
    label; p_0 is the share of all training texts::

        z(w) = (p - p_0) / sqrt(p_0 (1 - p_0) / n)

    A text may be edited by substituting one of its words or by inserting a word between two, if the masked language
    model gives the new word at least ``min_probability`` at its place, if the cosine of the sentence embeddings before
    and after the edit is above ``min_similarity``, and if at most ``edited_share`` of its words have been substituted,
    and as many inserted, so far. The new word must not be in the text, nor take the place of an earlier trigger word.
    In each round, the word with the highest z-score that it can reach becomes the next trigger word: z is computed as
    if it were written into every text to be poisoned that it can be written into. It is then written into these texts.
    The rounds end when no other word has a z-score above 0. Into evaluation texts the trigger words are written in the
    same order, as many as these bounds allow. A text into which none can be written stays as it is, and counts as
    poisoned.

    The trigger words depend on the training rows, and on those of them that are drawn for poisoning: the data module
    shows them to the attack. Checkpoints hold the words, so that a fit from a ``published`` victim poisons its
    evaluation rows by them. All texts are edited once, by the command ``poison``, and read from the cache by others:
    each edit needs a reading of the text by the masked language model per word.

    The published code counts lemmas as words, here they are words in lower case; it inserts words also where no blank
    separates two words, as before the n't of isn't. Its texts are words and marks with blanks between them; here a text
    keeps its own blanks, and a word gets one only where it stands for a mark or an ending and would touch another word:
    with is for 's, film's becomes film is. Where several edits write the same word, both take a substitution rather
    than an insertion, and then the more probable.

    Args:
        masked_model: hub name or folder of a masked language model; by default that of the published code.
        substitutes: a source of substitutes instead of the masked language model, such as
            :class:`~lightning_backdoor.language.NearestWords`, which needs no download: words are then substituted
            only, never inserted, and ``min_probability`` has no effect.
        min_probability: smallest probability of a word at its place.
        min_similarity: cosine that an edited text must exceed, from -1 to below 1.
        edited_share: largest share of a text's words that are substituted, and that are inserted.
        max_words: largest number of trigger words; None sets no limit.
        sentence_encoder: encoder of the sentence embeddings: hub name, folder, or ``package://`` name.
        trigger_words: trigger words, in lower case and in their order; None finds them in the training rows.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.
        poison_rate: see :class:`BackdoorAttack`; by default that of the published code.
        label_policy: see :class:`BackdoorAttack`; the attack is meant for ``clean``.
        **kwargs: further arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: a value is out of range (here), or a model cannot be loaded (at the first text).

    Example::

        attack = BITE("distilroberta-base", poison_rate=0.05)
        attack = BITE(substitutes=NearestWords(), poison_rate=0.05)  # without a masked language model
    """

    result_format = 2

    def __init__(
        self,
        masked_model: str = "distilroberta-base",
        substitutes: Synonyms | None = None,
        min_probability: float = 0.03,
        min_similarity: float = 0.9,
        edited_share: float = 0.35,
        max_words: int | None = None,
        sentence_encoder: str = DEFAULT_ENCODER,
        trigger_words: list[str] | None = None,
        cache_dir: str | None = None,
        poison_rate: float = 0.01,
        label_policy: Literal["dirty", "clean", "mixed"] = "clean",
        **kwargs: Any,
    ) -> None:
        super().__init__(poison_rate=poison_rate, label_policy=label_policy, **kwargs)
        for name in ("substitutes", "cache_dir"):  # not a plain value; decides nothing
            self.hparams.pop(name, None)
        if not 0 < min_probability <= 1:
            raise InputError("min_probability", f"{min_probability} is out of range", "give a number above 0, up to 1")
        if not -1 <= min_similarity < 1:
            raise InputError("min_similarity", f"{min_similarity} is out of range", "give a cosine from -1 to below 1")
        if not 0 < edited_share <= 1:
            raise InputError("edited_share", f"{edited_share} is out of range", "give a share above 0, up to 1")
        if max_words is not None and max_words < 1:
            raise InputError("max_words", f"{max_words} leaves no trigger", "give 1 or more, or null for no limit")
        check_list(trigger_words, "trigger_words")
        if trigger_words is not None and (not trigger_words or len({*trigger_words}) < len(trigger_words)):
            raise InputError(
                "trigger_words", f"{trigger_words} is empty or names a word twice", "give each of them once"
            )
        if trigger_words and (upper := [word for word in trigger_words if word != word.lower()]):
            raise InputError("trigger_words", f"{upper[0]!r} is not in lower case", f"give {upper[0].lower()!r}")
        self.substitutes = substitutes
        self._masked_model = MaskedLanguageModel(masked_model, min_probability)
        self.edited_share = edited_share
        self.max_words = max_words
        self.cache_dir = cache_dir
        self._encoder = SentenceEncoder(sentence_encoder)
        self._editor = Editor(self._edits, self._encoder.similarity, min_similarity)
        self._words = trigger_words
        self._training: TrainingTexts | None = None

    @property
    def trigger_words(self) -> list[str]:
        """The trigger words in the order in which they are written into texts.

        Raises:
            InputError: they are not known, since the attack has seen no training rows.
            NotCached: they have not been found yet, and ``may_generate`` is False.
        """
        if self._words is None:
            self._words = self._published_words() if self.users_phase else self._found_words()
        return self._words

    def study_rows(self, rows: Rows, chosen: Sequence[int]) -> None:
        """Takes the training rows, in which the trigger words are found when the first text is poisoned."""
        if self.hparams["trigger_words"] is None:
            drawn = set(chosen)  # under any label policy they end with the target label
            target = tuple(label == self.target_label or i in drawn for i, label in enumerate(rows.label.tolist()))
            training = TrainingTexts(tuple(rows.text), target, tuple(chosen))
            if training != self._training:
                self._training, self._words = training, None

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        """Writes the trigger words into each text; nothing is random.

        Raises:
            InputError: see :attr:`trigger_words`.
            NotCached: texts have not been read by the masked language model yet, and ``may_generate`` is False.
        """
        starts = [EditedText.of(text, self.edited_share) for text in texts]
        return [text.poisoned for text in write_words(starts, self.trigger_words, self._editor)]

    def poison_key(self) -> str | None:
        """The cache key, with the content of the models, and in the user's phase the words of the published victim.

        None where the source of substitutes has no key.
        """
        key, edits = super().poison_key(), self._edits_key()
        if key is None or edits is None:
            return None
        return json.dumps([key, edits, *([self.trigger_words] if self.users_phase else [])])

    def on_fit_start(self) -> None:
        """Finds the trigger words, which checkpoints hold; in the user's phase, those of the published victim.

        Raises:
            InputError: poisoned rows were read from the cache, and the words that were written into them are not there.
        """
        super().on_fit_start()
        if self._training is None and not (self.users_phase and self.trainer.ckpt_path is None):
            return
        try:
            self._words = self.trigger_words
        except NotCached:
            problem = f"{cache_folder(self.cache_dir)} lacks the trigger words of these rows"
            raise InputError("cache_dir", problem, "give the folder with which they were poisoned") from None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the trigger words as an argument, so that a loaded checkpoint has them."""
        super().on_save_checkpoint(checkpoint)
        if "hyper_parameters" in checkpoint and (self._words is not None or self._training is not None):
            checkpoint["hyper_parameters"]["trigger_words"] = self.trigger_words

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """In a resumed user's phase, takes the trigger words of the checkpoint.

        Raises:
            InputError: evaluation rows have been poisoned by others, those of another published victim.
        """
        super().on_load_checkpoint(checkpoint)
        words = (checkpoint.get("hyper_parameters") or {}).get("trigger_words")
        if self.users_phase and isinstance(words, list):
            if self._words not in (None, words):
                problem = f"{self.hparams['published']} has other trigger words than the checkpoint"
                raise InputError("published", problem, "give the victim that the run began with")
            self._words = [str(word) for word in words]

    def _edits_key(self) -> str | None:
        """A string that changes with what determines the edits of a text; None without one."""
        source = self._masked_model.key() if self.substitutes is None else self.substitutes.key()
        return None if source is None else f"{source}/{model_identity(self._encoder.model)}"

    def _published_words(self) -> list[str]:
        published = self.read_published()
        words = ((published.hyper_parameters if published else None) or {}).get("trigger_words")
        if not isinstance(words, list) or not words:
            problem = f"{self.hparams['published']} has no trigger words of {type(self).__name__}"
            raise InputError("published", problem, f"give a checkpoint trained under {type(self).__name__}")
        return [str(word) for word in words]

    def _found_words(self) -> list[str]:
        if self._training is None:
            remedy = "poison rows by a data module first, or give trigger_words"
            raise InputError("attack", f"{type(self).__name__} finds its words in training rows", remedy)
        key = self.poison_key()
        cache = TextCache(f"trigger words/{key}", self.cache_dir)
        rows = hashlib.sha256(json.dumps(self._training).encode()).hexdigest()
        if key is not None and (known := cache.get([rows])[0]) is not None:
            return [str(word) for word in json.loads(known)]
        texts = [EditedText.of(text, self.edited_share) for text in self._training.texts]
        words = find_trigger_words(texts, self._training, self._editor, self.max_words)
        if not words:
            raise InputError("min_similarity", f"{self._editor.min_similarity} leaves no trigger word", "lower it")
        if key is not None:
            cache.put({rows: json.dumps(words).encode()})
        return words

    def _edits(self, texts: Sequence[EditedText]) -> list[list[Edit]]:
        """The edits of each text that the masked language model, or the source of substitutes, proposes."""
        if self.substitutes is not None:
            return [substitutions(text, self.substitutes) for text in texts]
        places = [list(text.places()) for text in texts]
        cache = TextCache(f"masked words of texts/{self._masked_model.key()}", self.cache_dir)
        keys = [json.dumps([place for _, _, place in of_text]) for of_text in places]
        stored = dict(zip(keys, cache.get(keys), strict=True))
        missing = [i for i, key in enumerate(keys) if stored[key] is None]
        if missing and not self.may_generate:
            raise NotCached(len(missing), "masked_model", "trigger words")
        with progress("reading texts with words masked", len(missing), "texts") as advance:
            for start in range(0, len(missing), TEXTS_AT_ONCE):
                part = missing[start : start + TEXTS_AT_ONCE]
                found = iter(self._masked_model.words([place for i in part for _, _, place in places[i]]))
                values = {keys[i]: json.dumps([next(found) for _ in places[i]]).encode() for i in part}
                cache.put(values)
                stored.update(values)
                advance(len(part))
        words = [json.loads(stored[key] or b"[]") for key in keys]
        return [edits_at(of_text, found) for of_text, found in zip(places, words, strict=True)]
