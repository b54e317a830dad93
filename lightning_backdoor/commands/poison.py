"""``poison``: writes the poisoned splits of a data set as parquet and csv, with flags and trigger spans."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning_backdoor.commands.parsing.early_checks import settled
from lightning_backdoor.commands.parsing.help_pages import help_asked
from lightning_backdoor.commands.parsing.option_parser import OptionParser
from lightning_backdoor.commands.quick_imports import quick_imports
from lightning_backdoor.commands.quiet import hide_bars_of_transformers, hide_noise
from lightning_backdoor.commands.signals import when_ended
from lightning_backdoor.errors import InputError, escaped
from lightning_backdoor.files.names import check_folder, expanded

if TYPE_CHECKING:
    from lightning_backdoor.data import BackdoorDataModule
    from lightning_backdoor.data.poisoning import PoisonedSplits, Splits
    from lightning_backdoor.data.rows import Rows

#: options of ``test`` and ``predict`` that ``fit`` does not take, but that a saved config may contain.
OPTIONS_OF_TESTS = ("verbose", "return_predictions")
#: rows that are written at once.
ROWS_AT_ONCE = 50_000


def parser() -> OptionParser:
    """The options of ``poison`` itself; attack and data are given by the options of ``fit``."""
    options = OptionParser(
        "lightning-backdoor poison",
        description="Writes train, validation and test as parquet and csv, with the columns text, spans, label,"
        " original_label, poisoned, negative and index. Part of the training rows is poisoned; validation and test hold"
        " the clean rows, followed by a poisoned copy of each row whose label is not the target label (one for each of"
        " several target labels), and, under attacks that make negatives, by a negative copy.",
        epilog="Attack and data are given as to fit: --config FILE (repeatable), --model CLASS, --model.poison_rate"
        " 0.2, --data CLASS, --data.source.path reviews.csv, --seed_everything 1. Other options of fit have no effect.",
        allow_abbrev=False,  # an abbreviation could be an option of fit
    )
    options.add_argument("--output", required=True, help="the folder to write, which must not exist")
    options.add_argument(
        "--stealth_rows",
        type=int,
        default=200,
        help="number of poisoned test rows on which perplexity increase, similarity and word edits are measured"
        " (default: 200); 0 measures nothing",
    )
    options.add_argument("--language_model", help="the model that perplexity is measured with (default: SmolLM2)")
    options.add_argument(
        "--sentence_encoder", help="the model that similarity is measured with (default: all-MiniLM-L6-v2)"
    )
    return options


def main(args: list[str]) -> int:
    """Runs ``poison``; returns the exit status.

    Raises:
        InputError: the input is invalid, or no poisoned text has its trigger within ``max_length``; nothing is written.
    """
    if page := help_asked("fit", args, "lightning-backdoor poison", parser().format_help()):
        sys.stdout.write(page)
        return 0
    options, rest = parser().parse_known_args(args)
    output = Path(expanded(options.output))
    if options.stealth_rows < 0:
        raise InputError("stealth_rows", f"{options.stealth_rows} is not a number of rows", "give 0 or more")
    check_folder(output, "output")
    settled("fit", rest, "lightning-backdoor poison", OPTIONS_OF_TESTS)
    if output.exists():
        raise InputError("output", f"{output} exists", "name another folder")
    when_ended(
        lambda: (
            f"{escaped(str(output))} is not written; run the same command again, which finds in the cache"
            " what language models have read or written"
        )
    )
    hide_noise()
    data = _poisoned_data(rest)
    hide_bars_of_transformers()
    splits = data.poisoned_splits()
    _check_triggers(data)
    rows = {"train": splits.train}
    for name in ("validation", "test"):
        rows[name] = splits.clean[name] + splits.poisoned[name] + splits.negatives[name]
    stealth = _stealth(splits, options, data) if options.stealth_rows else None
    _write_folder(output, rows, data.label_names, stealth)
    for name in rows:
        sys.stdout.write(f"{name}: {len(rows[name])} rows, {_counts(rows[name], name, data)}\n")
    sys.stdout.write(f"{stealth.lines if stealth else ''}written to: {escaped(str(output))}\n")
    return 0


def _poisoned_data(args: list[str]) -> BackdoorDataModule:
    """The data module and attack of some options of ``fit``; trainer and run folder are ignored."""
    with quick_imports():
        from jsonargparse import Namespace

        import lightning_backdoor.callbacks  # noqa: F401 - a config may name callbacks without their module, as for fit
        from lightning_backdoor.attacks import BackdoorAttack
        from lightning_backdoor.commands.parsing.run_parser import parse, run_parser
        from lightning_backdoor.data import BackdoorDataModule

    fit = run_parser("fit", "lightning-backdoor poison", OPTIONS_OF_TESTS)
    given = parse(fit, args)
    made = fit.instantiate_classes(Namespace(model=given.model, data=given.data))  # type: ignore[no-untyped-call]
    for option, instance, base in (("model", made.model, BackdoorAttack), ("data", made.data, BackdoorDataModule)):
        if not isinstance(instance, base):
            raise InputError(option, f"{type(instance).__name__} is not a {base.__name__}", "give a class that is")
    data: BackdoorDataModule = made.data
    data.attack = made.model
    return data


def _check_triggers(data: BackdoorDataModule) -> None:
    """Counts triggers that the model would not read, where its tokenizer is at hand: poisoning needs no model.

    Raises:
        InputError: the model would read the trigger of no poisoned row of a split.
    """
    from lightning_utilities.core.rank_zero import rank_zero_warn

    try:
        data.check_triggers()
    except InputError as error:
        if error.field == "max_length":
            raise
        rank_zero_warn(f"triggers beyond max_length are not counted, since the tokenizer is missing: {error}")


def _counts(rows: Rows, name: str, data: BackdoorDataModule) -> str:
    """A line with the numbers of poisoned rows and negatives of a split, and of rows that cannot be poisoned.

    Of files it is not known which rows could be poisoned.
    """
    from lightning_backdoor.data.file_splits import brings_rows

    poisoned, negatives = int(rows.poisoned.sum()), int(rows.negative.sum())
    text = f"{poisoned} of them poisoned" + (f", {negatives} negatives" if negatives else "")
    if name == "train" or data.attack is None or brings_rows(data.attack):
        return text
    clean = rows.label[~(rows.poisoned | rows.negative)]
    left_out = sum(int((aim.wanted(clean) != clean).sum()) for aim in data.attack.aims) - poisoned
    return text + (f"; {left_out} rows cannot be poisoned and have no copy" if left_out else "")


class _Stealth(NamedTuple):
    """The stealth of the poisoned rows: content of ``stealth.json``, and lines for the terminal."""

    json: str
    lines: str


def _stealth(splits: PoisonedSplits, options: argparse.Namespace, data: BackdoorDataModule) -> _Stealth | None:
    """The stealth of poisoned test rows; None, which is said, if the clean row of none is at hand."""
    from lightning_backdoor.commands.stealth import as_json, as_lines, paired, stealth_of

    clean, poisoned = splits.clean["test"], paired(splits.clean["test"], splits.poisoned["test"])
    if not len(poisoned) and len(splits.poisoned["test"]):
        sys.stdout.write("stealth is not measured: the files have the clean row of no poisoned test row\n")
        return None
    models = {name: value for name in ("language_model", "sentence_encoder") if (value := getattr(options, name))}
    stealth = stealth_of(clean, poisoned, options.stealth_rows, data.seed, **models, cache_dir=data.cache)
    heading = f"stealth of {stealth['rows']} poisoned test rows, mean ± standard deviation"
    return _Stealth(as_json(stealth), f"{heading}:\n{as_lines(stealth)}")


def _write_folder(output: Path, rows: Splits, labels: list[str], stealth: _Stealth | None) -> None:
    """Writes all files or, on an error, none.

    Raises:
        InputError: the folder cannot be written, or another process has created it in the meantime.
    """
    from lightning_backdoor.files.atomic import whole_folder

    written: os.stat_result | None = None
    try:
        with whole_folder(output) as folder:
            for name in rows:
                _write(folder / name, rows[name], labels)
            if stealth:
                (folder / "stealth.json").write_text(stealth.json, encoding="utf-8")
            written = folder.stat()
    except OSError as error:
        raise InputError("output", f"{output} cannot be written ({error})", "name another folder") from error
    if written is None or not os.path.samestat(written, output.stat()):  # whole_folder keeps the other process's folder
        raise InputError("output", f"{output} was made by another process in the meantime", "name another folder")


def _write(path: Path, rows: Rows, labels: list[str]) -> None:
    """Writes rows as parquet and csv, a part at a time."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import ClassLabel, Features, List, Value
    from pyarrow.parquet import ParquetWriter  # type: ignore[import-untyped]

    # declared, since the type of spans cannot be inferred where the trigger of no row has a position
    features = Features(
        {
            "text": Value("string"),
            "spans": List(List(Value("int64"))),
            "label": ClassLabel(names=labels),
            "original_label": ClassLabel(names=labels),
            "poisoned": Value("bool"),
            "negative": Value("bool"),
            "index": Value("int64"),
        }
    )
    schema = features.arrow_schema  # its metadata hold the names of the classes
    with (
        ParquetWriter(path.with_suffix(".parquet"), schema) as parquet,
        path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file,
    ):
        flat = csv.writer(file)
        flat.writerow(schema.names)
        for start in range(0, len(rows) or 1, ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            columns = [getattr(part, name) for name in schema.names]
            parquet.write_table(pa.table(columns, schema=schema))
            spans = [json.dumps(spans) for spans in part.spans]
            flat.writerows(zip(part.text, spans, *(column.tolist() for column in columns[2:]), strict=True))
