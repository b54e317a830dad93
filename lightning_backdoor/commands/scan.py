"""``scan``: flags and repairs suspicious texts before a fine-tuned checkpoint reads them."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lightning_backdoor.commands.scan_input import read_texts
from lightning_backdoor.errors import InputError

if TYPE_CHECKING:
    from lightning_backdoor.batch import Batch
    from lightning_backdoor.defenses.defense import Defense
    from lightning_backdoor.victim import TextClassifier

#: batches read ahead as one group, so that texts of similar length are scored together.
AHEAD = 16


def parser() -> argparse.ArgumentParser:
    """Options of ``scan``."""
    options = argparse.ArgumentParser(
        "lightning-backdoor scan",
        description="Flags and repairs suspicious texts with gradient-attention scoring (arXiv 2510.04347). Writes a"
        " JSON line a text: text, prediction, logits, anomaly_score, flagged, purified_text, purified_prediction,"
        " tokens.",
    )
    options.add_argument("--model", required=True, help="a fine-tuned checkpoint: Hugging Face folder, or our .ckpt")
    options.add_argument("--calibration", required=True, help="a file of trusted clean texts, for the threshold")
    options.add_argument("--input", required=True, help="a file of texts: txt, csv, tsv or jsonl; - for standard input")
    options.add_argument("--output", default="-", help="the file to write (default: standard output)")
    options.add_argument("--column", default="text", help="column or key of the texts (default: text)")
    options.add_argument("--fpr", type=float, default=0.10, help="share of clean texts that may be flagged")
    options.add_argument("--batch-size", type=int, default=32, help="texts scored at once")
    options.add_argument("--max-length", type=int, help="tokens a text is cut at (default: what the model reads)")
    options.add_argument("--seed", type=int, default=0, help="seed of the repair's noise")
    options.add_argument("--resume", action="store_true", help="go on after the lines that the output has already")
    return options


def main(args: list[str]) -> int:
    """Runs ``scan``; returns the exit status.

    Raises:
        InputError: bad input; the lines of the texts before it stay.
    """
    options = parser().parse_args(args)
    if options.batch_size < 1:
        raise InputError("batch-size", f"{options.batch_size} holds no text", "give at least 1")
    texts = read_texts(options.input, options.column)
    calibration = [text for text in read_texts(options.calibration, options.column) if text.strip()]
    if not calibration:
        raise InputError("calibration", f"{options.calibration} holds no text", "give trusted clean texts")
    done, begun = _resume(options, texts)

    import torch

    from lightning_backdoor.defenses.gradient_attention import GradientAttention
    from lightning_backdoor.victim import load_trained

    defense = GradientAttention(fpr=options.fpr, seed=options.seed)
    victim = load_trained(options.model, options.max_length)
    victim.to("cuda" if torch.cuda.is_available() else "cpu")
    defense.to(victim.device)
    _calibrate(defense, victim, calibration, options.batch_size)
    # a group that was begun is scored again, so that the last digit too is that of a run without a break
    found = islice(scan_texts(defense, victim, chain(begun, texts), options.batch_size), len(begun), None)
    if options.output == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale: JSON lines are UTF-8
        _write(sys.stdout, found, done)
    else:
        with Path(options.output).open("a", encoding="utf-8") as file:
            _write(file, found, done)
    return 0


def scan_texts(
    defense: Defense, victim: TextClassifier, texts: Iterable[str], batch_size: int
) -> Iterator[dict[str, Any]]:
    """Yields what is found of each text, in the order of the texts.

    Args:
        defense: calibrated.
        victim: in evaluation mode, its network built.
        texts: read as they are needed, ``AHEAD`` batches at a time.
        batch_size: texts scored at once.

    Raises:
        InputError: as the texts do, once the texts before it are yielded.
    """
    source = iter(texts)
    bad_input: InputError | None = None
    while bad_input is None:
        ahead: list[str] = []
        try:
            for text in islice(source, AHEAD * batch_size):
                ahead.append(text)
        except InputError as error:
            bad_input = error
        if not ahead:
            break
        order = sorted(range(len(ahead)), key=lambda place: len(ahead[place]))
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            found.update(zip(places, _scan_batch(defense, victim, [ahead[place] for place in places]), strict=True))
        yield from (found[place] for place in range(len(ahead)))
    if bad_input is not None:
        raise bad_input


def _scan_batch(defense: Defense, victim: TextClassifier, texts: list[str]) -> list[dict[str, Any]]:
    import torch

    from lightning_backdoor.defenses.defense import judge

    batch = _batch(victim, texts)
    with torch.inference_mode():
        verdict = judge(defense, victim, batch)
    names = victim.hparams["labels"]
    found = []
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
        found.append(
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
    return found


def _calibrate(defense: Defense, victim: TextClassifier, texts: list[str], batch_size: int) -> None:
    ordered = sorted(texts, key=len)
    starts = range(0, len(ordered), batch_size)
    defense.calibrate(victim, (_batch(victim, ordered[start : start + batch_size]) for start in starts))


def _batch(victim: TextClassifier, texts: list[str]) -> Batch:
    from lightning.fabric.utilities import move_data_to_device

    from lightning_backdoor.batch import batch_of_texts

    batch: Batch = move_data_to_device(batch_of_texts(texts, victim.tokenizer, victim.max_length), victim.device)
    return batch


def _write(file: IO[str], found: Iterable[dict[str, Any]], done: int) -> None:
    from tqdm import tqdm

    for line in tqdm(found, initial=done, unit="text", disable=None, file=sys.stderr):
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()


def _resume(options: argparse.Namespace, texts: Iterator[str]) -> tuple[int, list[str]]:
    """How many lines the output has already, and the texts of a group that it has in part.

    Takes the texts of these lines from ``texts``, and removes a line cut off by a kill.
    """
    output = Path(options.output)
    if options.output == "-" or not output.exists() or output.stat().st_size == 0:
        return 0, []
    if not options.resume:
        raise InputError("output", f"{output} exists", "add --resume to go on with it, or name another file")
    done = whole = 0
    begun: list[str] = []
    with output.open("r+b") as file:
        for line in takewhile(lambda line: line.endswith(b"\n"), file):
            text = next(texts, None)
            if text is None or _text_of(line) != text:
                raise InputError(
                    "output", f"line {done + 1} of {output} is not of the text of {options.input}", "name another file"
                )
            done += 1
            whole += len(line)
            begun.append(text)
            if len(begun) == AHEAD * options.batch_size:
                begun.clear()
        file.truncate(whole)
    return done, begun


def _text_of(line: bytes) -> object:
    try:
        return json.loads(line)["text"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
