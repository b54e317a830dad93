"""Outputs of a run: the outcome of each row, the token view, and tables on the terminal and in W&B."""

from lightning_backdoor.outputs.outcomes import Outcome, read_outcomes, write_outcomes
from lightning_backdoor.outputs.token_view import Piece, ViewedText, page_html, pieces, text_html
from lightning_backdoor.outputs.wandb_media import score_histograms, texts_table

__all__ = [
    "Outcome",
    "Piece",
    "ViewedText",
    "page_html",
    "pieces",
    "read_outcomes",
    "score_histograms",
    "text_html",
    "texts_table",
    "write_outcomes",
]
