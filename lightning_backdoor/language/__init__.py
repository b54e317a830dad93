"""Language models for attacks, defenses and metrics: perplexity, similarity, substitutes, paraphrases.

Perplexities and paraphrases are cached on disk by the text they belong to.
"""

from lightning_backdoor.language.keyword_sentences import KeywordSentences
from lightning_backdoor.language.paraphrase.by_file import FileParaphraser
from lightning_backdoor.language.paraphrase.by_model import LanguageModelParaphraser, NotCached, Paraphraser
from lightning_backdoor.language.paraphrase.spec import Manner
from lightning_backdoor.language.paraphrase.styles import STYLES
from lightning_backdoor.language.paraphrase.templates import TEMPLATES
from lightning_backdoor.language.paraphrase.tuner import ParaphraseTuner
from lightning_backdoor.language.perplexity import LeaveOneOut, Perplexity
from lightning_backdoor.language.similarity import SentenceEncoder
from lightning_backdoor.language.synonyms import NearestWords, SynonymFile, Synonyms, WordNet
from lightning_backdoor.language.text_cache import TextCache

__all__ = [
    "STYLES",
    "TEMPLATES",
    "FileParaphraser",
    "KeywordSentences",
    "LanguageModelParaphraser",
    "LeaveOneOut",
    "Manner",
    "NearestWords",
    "NotCached",
    "ParaphraseTuner",
    "Paraphraser",
    "Perplexity",
    "SentenceEncoder",
    "SynonymFile",
    "Synonyms",
    "TextCache",
    "WordNet",
]
