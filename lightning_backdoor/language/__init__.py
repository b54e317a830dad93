"""What language models are used for: perplexities, exact and cheap, and paraphrases; both kept on disk by the text."""

from lightning_backdoor.language.paraphrase.by_file import FileParaphraser
from lightning_backdoor.language.paraphrase.by_model import LanguageModelParaphraser, Paraphraser
from lightning_backdoor.language.paraphrase.tuner import ParaphraseTuner
from lightning_backdoor.language.perplexity import LeaveOneOut, Perplexity
from lightning_backdoor.language.similarity import SentenceEncoder
from lightning_backdoor.language.text_cache import TextCache

__all__ = [
    "FileParaphraser",
    "LanguageModelParaphraser",
    "LeaveOneOut",
    "ParaphraseTuner",
    "Paraphraser",
    "Perplexity",
    "SentenceEncoder",
    "TextCache",
]
