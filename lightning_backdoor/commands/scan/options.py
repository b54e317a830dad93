"""The options of ``scan``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_backdoor.commands.parsing.option_parser import OptionParser
from lightning_backdoor.commands.scan.defense_options import DefenseOption, check_values, defense_options
from lightning_backdoor.commands.scan.shard import shard
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.names import expanded

DESCRIPTION = """\
Flags and repairs suspicious texts, with gradient-attention scoring (arXiv 2510.04347) or any other inference-time
defense. Writes one JSON line per text: text, prediction, logits, anomaly_score, flagged, purified_text,
purified_prediction (null in a flagged line: rejected), and tokens in the order of the text, each with start, end and
score. A defense that has studied all texts adds flagged_alone: the flag that the text has by itself, which the verdict
counts. With several defenses, each has a field of its own with anomaly_score and what comes after it. On standard
error, a scan ends with the threshold, the counts, and a verdict: whether more texts are flagged than clean texts would
be, and which words stand out in them.
"""
EPILOG = """\
Defenses: --defense Onion --defense.bar 0, or --defense 'Onion(bar=0)', or a preset, configs/defense/onion.yaml.
Give --defense several times to compare several. Your own class is named by its path in an installed package, or by
FILE.py:CLASS; nothing else is imported from the working directory, which may hold an untrusted model.

Some defenses, such as those that compare a text with the whole set, study all texts of the input before they judge the
first. What they have seen is kept beside the output, or in --directions FILE, with which later texts are judged one by
one, also from standard input; --study adds the texts of this input to it.

Large inputs: --devices 8 shares one scan among devices; --shard 3/16 scans the third of 16 parts, as a job of its own,
and --join joins the parts, or cat does. The output is the same in each case, to the last byte on equal machines.
"""


def parser() -> OptionParser:
    """The options of ``scan``."""
    options = OptionParser(
        "lightning-backdoor scan",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--model", help="a fine-tuned checkpoint: a Hugging Face folder, a .ckpt, or a run's folder")
    options.add_argument("--calibration", help="a file of trusted clean texts, which set the threshold")
    options.add_argument(
        "--input",
        nargs="+",
        help="files of texts: txt, csv, tsv, jsonl (each perhaps .gz) or parquet; - for standard input",
    )
    options.add_argument(
        "--output", default="-", help="the file to write: JSON lines, or parquet by its name (default: standard output)"
    )
    options.add_argument(
        "--defense", metavar="NAME", help="a defense (default: GradientAttention), with --defense.ARGUMENT VALUE"
    )
    options.add_argument(
        "--directions", metavar="FILE", help="what a defense has studied: read if the file exists, otherwise written"
    )
    options.add_argument("--study", action="store_true", help="study this input as well, and add it to --directions")
    options.add_argument(
        "--gate",
        action="store_true",
        help="keep no repair unless more texts are flagged than clean texts explain, or words stand out among them",
    )
    options.add_argument("--html", metavar="FILE", help="also write the first 200 texts, flagged ones first, shaded")
    options.add_argument("--column", default="text", help="column or key that holds the texts (default: text)")
    options.add_argument(
        "--quoting", choices=("yes", "no"), help="whether fields of csv and tsv files are quoted (default: by the file)"
    )
    options.add_argument(
        "--fpr", type=float, help="share of clean texts that may be flagged (default: the defense's own, 0.01 to 0.1)"
    )
    options.add_argument("--batch-size", type=int, default=32, help="number of texts scored at once")
    options.add_argument(
        "--max-length",
        type=int,
        help="number of tokens at which texts are cut (default: what the model reads)",
    )
    options.add_argument("--seed", type=int, default=0, help="seed of the defenses")
    options.add_argument("--resume", action="store_true", help="continue after the lines that the output already has")
    options.add_argument("--devices", default="1", help="number of devices, or auto for all (default: 1)")
    options.add_argument("--num-nodes", type=int, default=1, help="number of machines (default: 1)")
    options.add_argument("--shard", metavar="NUMBER/OF", help="scan one part only: 3/16 is the third of 16")
    options.add_argument("--join", nargs="+", metavar="PART", help="join the outputs of all shards instead of scanning")
    return options


def parse(args: list[str]) -> tuple[argparse.Namespace, list[DefenseOption]]:
    """The options of a scan, with ``~`` replaced in paths, and its defenses.

    Raises:
        InputError: an option is missing or cannot be used.
    """
    defenses, others = defense_options(args)
    check_values(defenses)
    options = parser().parse_args(others)
    for name in ("model", "calibration", "output", "directions", "html"):
        given = getattr(options, name)
        setattr(options, name, given and expanded(given))
    for name in ("input", "join"):
        setattr(options, name, [expanded(path) for path in getattr(options, name) or ()] or None)
    if options.gate and (
        options.output == "-" or (Path(options.output).exists() and not Path(options.output).is_file())
    ):
        raise InputError("gate", "it changes lines when all are written", "give a file as --output")
    if options.join:
        return options, defenses
    missing = [f"--{name}" for name in ("model", "calibration", "input") if getattr(options, name) is None]
    if missing:
        problem = f"the following arguments are required: {', '.join(missing)}"
        raise InputError("options", problem, "see lightning-backdoor scan --help")
    if options.batch_size < 1:
        raise InputError("batch-size", f"{options.batch_size} holds no text", "give at least 1")
    if options.num_nodes < 1:
        raise InputError("num_nodes", f"{options.num_nodes} is not a number of machines", "give at least 1")
    if options.devices != "auto" and not (options.devices.isdecimal() and int(options.devices) > 0):
        raise InputError("devices", f"{options.devices[:40]!r} is not a number of devices", "give at least 1, or auto")
    if options.resume and options.output == "-" and options.directions is None:  # a set pass can be continued
        raise InputError("resume", "standard output cannot be continued", "give the --output that is to be continued")
    options.shard = None if options.shard is None else shard(options.shard)
    if options.gate and options.shard is not None:
        raise InputError("gate", "a shard is not the whole set", "give --gate with --join instead")
    if options.study and options.directions is None:
        raise InputError("study", "there is no file to which this input is added", "give --directions FILE")
    if options.study and options.shard is not None:
        raise InputError("study", "each shard would add the whole input", "leave it out, or leave out --shard")
    return options, defenses
