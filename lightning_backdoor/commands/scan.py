"""``scan``: flags and repairs suspicious texts before a fine-tuned checkpoint reads them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lightning_backdoor.commands.options import OptionParser
from lightning_backdoor.commands.scan_input import read_texts
from lightning_backdoor.commands.scan_output import Output
from lightning_backdoor.commands.scan_progress import Tally, line_text, resume
from lightning_backdoor.commands.scan_settings import scan_settings, write_settings
from lightning_backdoor.errors import InputError

if TYPE_CHECKING:
    from lightning_backdoor.batch import Batch
    from lightning_backdoor.defenses.defense import Defense
    from lightning_backdoor.victim import TextClassifier

#: number of batches that are read together, so that texts of similar length are scored together.
BATCHES_AHEAD = 16


def parser() -> OptionParser:
    """The options of ``scan``."""
    options = OptionParser(
        "lightning-backdoor scan",
        description="Flags and repairs suspicious texts with gradient-attention scoring (arXiv 2510.04347). Writes one"
        " JSON line per text: text, prediction, logits, anomaly_score, flagged, purified_text, purified_prediction,"
        " tokens. The last line on standard error says whether more texts are flagged than clean texts would be.",
    )
    options.add_argument(
        "--model", required=True, help="a fine-tuned checkpoint: a Hugging Face folder, or the .ckpt of a run"
    )
    options.add_argument("--calibration", required=True, help="a file of trusted clean texts, which set the threshold")
    options.add_argument("--input", required=True, help="a file of texts: txt, csv, tsv or jsonl; - for standard input")
    options.add_argument("--output", default="-", help="the file to write (default: standard output)")
    options.add_argument("--column", default="text", help="column or key that holds the texts (default: text)")
    options.add_argument(
        "--quoting", choices=("yes", "no"), help="whether fields of csv and tsv files are quoted (default: by the file)"
    )
    options.add_argument("--fpr", type=float, default=0.10, help="share of clean texts that may be flagged")
    options.add_argument("--batch-size", type=int, default=32, help="number of texts scored at once")
    options.add_argument(
        "--max-length", type=int, help="number of tokens at which texts are cut (default: what the model reads)"
    )
    options.add_argument("--seed", type=int, default=0, help="seed of the noise that repairs texts")
    options.add_argument("--resume", action="store_true", help="continue after the lines that the output already has")
    return options


def main(args: list[str]) -> int:
    """Runs ``scan``; returns the exit status.

    Raises:
        InputError: the input is invalid; the lines of earlier texts are kept.
    """
    options = parser().parse_args(args)
    if options.batch_size < 1:
        raise InputError("batch-size", f"{options.batch_size} holds no text", "give at least 1")
    quoting = None if options.quoting is None else options.quoting == "yes"
    texts = read_texts(options.input, options.column, quoting)
    calibration = [text for text in read_texts(options.calibration, options.column, quoting) if text.strip()]
    if not calibration:
        raise InputError("calibration", f"{options.calibration} holds no text", "give trusted clean texts")
    with Output(options.output) as output:
        settings = {} if output.special else scan_settings(options, calibration)
        tally, begun, texts = resume(options, output, texts, settings, BATCHES_AHEAD * options.batch_size)

        import torch

        from lightning_backdoor.defenses.gradient_attention import GradientAttention
        from lightning_backdoor.victim import load_trained

        defense = GradientAttention(fpr=options.fpr, seed=options.seed)
        victim = load_trained(options.model, options.max_length)
        victim.to("cuda" if torch.cuda.is_available() else "cpu")
        defense.to(victim.device)
        _calibrate(defense, victim, calibration, options.batch_size)
        # a partly written group is scored again, so that its results equal an uninterrupted run to the last digit
        lines = islice(scan_texts(defense, victim, chain(begun, texts), options.batch_size), len(begun), None)
        file = output.opened()
        if settings and not tally.texts:
            write_settings(Path(options.output), settings)
        _write(file, lines, tally)
    sys.stderr.write(f"{tally.verdict(options.fpr, victim.hparams['labels'])}\n")
    return 0


def scan_texts(
    defense: Defense, victim: TextClassifier, texts: Iterable[str], batch_size: int
) -> Iterator[dict[str, Any]]:
    """Yields the result for each text, in the order of the texts, as a dict that becomes a line of the output.

    Args:
        defense: a calibrated defense.
        victim: the victim, in evaluation mode and with its network built.
        texts: the texts, read ``BATCHES_AHEAD`` batches at a time.
        batch_size: number of texts scored at once.

    Raises:
        InputError: raised by the iteration of ``texts``, once the results of earlier texts are yielded.
    """
    source = iter(texts)
    bad_input: InputError | None = None
    while bad_input is None:
        group: list[str] = []
        try:
            for text in islice(source, BATCHES_AHEAD * batch_size):
                group.append(text)
        except InputError as error:
            bad_input = error
        if not group:
            break
        order = sorted(range(len(group)), key=lambda position: len(group[position]))
        results: dict[int, dict[str, Any]] = {}
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            batch_results = _scan_batch(defense, victim, [group[position] for position in positions])
            results.update(zip(positions, batch_results, strict=True))
        yield from (results[position] for position in range(len(group)))
    if bad_input is not None:
        raise bad_input


def _scan_batch(defense: Defense, victim: TextClassifier, texts: list[str]) -> list[dict[str, Any]]:
    import torch

    from lightning_backdoor.defenses.defense import judge

    batch = _batch(victim, texts)
    with torch.inference_mode():
        verdict = judge(defense, victim, batch)
    names = victim.hparams["labels"]
    results = []
    for i, text in enumerate(texts):
        tokens: dict[str, float] = {}
        if verdict.scores.tokens is not None:
            strings = victim.tokenizer.convert_ids_to_tokens(batch["input_ids"][i].tolist())
            tokens = {
                token: score
                for token, score in zip(strings, verdict.scores.tokens[i].tolist(), strict=True)
                if score != float("-inf")
            }
        repaired = verdict.purified_text[i]
        results.append(
            {
                "text": text,
                "prediction": names[int(verdict.prediction[i])],
                "logits": verdict.logits[i].tolist(),
                "anomaly_score": float(verdict.scores.text[i]),
                "flagged": bool(verdict.flagged[i]),
                "purified_text": repaired,
                "purified_prediction": None if repaired is None else names[int(verdict.defended_prediction[i])],
                "tokens": [
                    {"token": token, "score": score} for token, score in sorted(tokens.items(), key=lambda t: -t[1])
                ],
            }
        )
    return results


def _calibrate(defense: Defense, victim: TextClassifier, texts: list[str], batch_size: int) -> None:
    ordered = sorted(texts, key=len)
    starts = range(0, len(ordered), batch_size)
    defense.calibrate(victim, (_batch(victim, ordered[start : start + batch_size]) for start in starts))


def _batch(victim: TextClassifier, texts: list[str]) -> Batch:
    from lightning.fabric.utilities import move_data_to_device

    from lightning_backdoor.batch import batch_of_texts

    batch: Batch = move_data_to_device(batch_of_texts(texts, victim.tokenizer, victim.max_length), victim.device)
    return batch


def _write(file: IO[str], lines: Iterable[dict[str, Any]], tally: Tally) -> None:
    """Writes each line as soon as it is computed, and counts it."""
    from tqdm import tqdm

    for line in tqdm(lines, initial=tally.texts, unit="text", disable=None, file=sys.stderr):
        file.write(line_text(line))
        file.flush()
        tally.add(line)
