"""Paraphrases in a style or a syntactic template: by a prompted or fine-tuned language model, or from a file."""

from lightning_backdoor.language.paraphrase.by_file import FileParaphraser
from lightning_backdoor.language.paraphrase.by_model import LanguageModelParaphraser, NotCached, Paraphraser
from lightning_backdoor.language.paraphrase.described_styles import DESCRIBED_STYLES
from lightning_backdoor.language.paraphrase.spec import Manner
from lightning_backdoor.language.paraphrase.styles import STYLES
from lightning_backdoor.language.paraphrase.templates import TEMPLATES
from lightning_backdoor.language.paraphrase.tuner import ParaphraseTuner

__all__ = [
    "DESCRIBED_STYLES",
    "STYLES",
    "TEMPLATES",
    "FileParaphraser",
    "LanguageModelParaphraser",
    "Manner",
    "NotCached",
    "ParaphraseTuner",
    "Paraphraser",
]
