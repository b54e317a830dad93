"""What a causal language model is used for: perplexities, exact and cheap, kept on disk by the text's content."""

from lightning_backdoor.language.perplexity import LeaveOneOut, Perplexity
from lightning_backdoor.language.text_cache import TextCache

__all__ = ["LeaveOneOut", "Perplexity", "TextCache"]
