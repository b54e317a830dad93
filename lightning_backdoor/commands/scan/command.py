"""``scan``: flags and repairs suspicious texts before a fine-tuned checkpoint reads them."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence

from lightning_backdoor.commands.quick_imports import quick_imports
from lightning_backdoor.commands.quiet import hide_bars_of_transformers, hide_noise
from lightning_backdoor.commands.scan.facts import Facts
from lightning_backdoor.commands.scan.gate import finish
from lightning_backdoor.commands.scan.join import join_parts, read_parts
from lightning_backdoor.commands.scan.options import parse
from lightning_backdoor.commands.scan.output import Output, check_standard_output
from lightning_backdoor.commands.scan.page import Page
from lightning_backdoor.commands.scan.settings import model_path, write_settings
from lightning_backdoor.commands.scan.tally import Tally
from lightning_backdoor.commands.signals import when_ended
from lightning_backdoor.errors import InputError, one_line
from lightning_backdoor.files.packaged import resolve


def main(args: list[str]) -> int:
    """Runs ``scan``; returns the exit status.

    Raises:
        InputError: the input is invalid; the lines of earlier texts are kept.
    """
    options, defenses = parse(args)
    if options.join:
        return _join(options)
    if options.output == "-":
        check_standard_output()  # before a model is loaded
    model = model_path(options.model, resolve(options.model))

    with quick_imports():
        from lightning_backdoor.commands.scan.defenses import create_all
        from lightning_backdoor.commands.scan.processes import processes
        from lightning_backdoor.commands.scan.run import Scan

    hide_noise()
    hide_bars_of_transformers()
    guards, described = create_all(defenses, options.fpr, options.seed)
    with processes(options.devices, options.num_nodes, args) as several:
        scan = Scan(options, model, guards, described, several)
        if not several.first:
            scan.serve()
            return 0
        names = [guard.name for guard in guards]
        tally, page = Tally(names), _page(options, names)
        with Output(options.output) as output:
            when_ended(lambda: _left(output, tally, args, scan.kept))
            facts = scan.run(output, tally, page)
            finish(output, names, tally.shut(facts) if options.gate else [])
    _report(options, output, tally, page, facts, scan.directions)
    return 0


def _join(options: argparse.Namespace) -> int:
    """Joins the outputs of shards; returns the exit status."""
    joined = read_parts(options.join)
    page = _page(options, list(joined.facts))
    with Output(options.output) as output:
        if output.has_lines():
            raise InputError("output", f"{output.name} exists", "name another file")
        tally = join_parts(joined, output, page)
        try:
            if output.name is not None and not output.special:
                write_settings(output.name, joined.settings, joined.facts)
            finish(output, list(joined.facts), tally.shut(joined.facts) if options.gate else [])
        except BaseException:
            output.discard()  # the parts have all lines, and are joined again
            raise
    for name in joined.differing:
        values = sorted({part.facts[name].threshold for part in joined.parts})
        shown = f"from {values[0]:.6g} to {values[-1]:.6g}"
        _say(f"warning: the threshold of {name} differs between the parts, {shown}: they ran on different machines")
    _report(options, output, tally, page, joined.facts)
    return 0


def _page(options: argparse.Namespace, names: Sequence[str]) -> Page | None:
    return None if options.html is None else Page(options.html, names)


def _report(
    options: argparse.Namespace,
    output: Output,
    tally: Tally,
    page: Page | None,
    facts: Mapping[str, Facts],
    directions: str | None = None,
) -> None:
    """Says what the scan has found: thresholds, counts, files and, last, the verdicts."""
    lines, verdicts = tally.summary(facts, options.gate)
    for line in lines:
        _say(line)
    if output.name is not None:
        _say(f"written to: {output.name}, {tally.texts} texts")
    if directions is not None:
        _say(f"directions: {directions}")
    if page is not None:
        _say(page.write(facts, tally.words(), tally.shut(facts) if options.gate else []))
    for line in verdicts:
        _say(line)


def _left(output: Output, tally: Tally, args: Sequence[str], kept: str | None) -> str:
    """What a scan that is ended leaves, and which command goes on.

    Args:
        output: the output.
        tally: counts the lines that are written.
        args: options of the command.
        kept: what is left of the set pass; None if that is nothing.
    """
    resumed = _command([*args, *([] if "--resume" in args else ["--resume"])])
    if kept is not None and not tally.texts:
        return one_line(f"{kept}; continue with: {resumed}")
    if output.special:
        return f"the lines of {tally.texts} texts are written, and standard output cannot be continued"
    if not tally.texts:
        return f"no text is scored yet; start again with: {_command(args)}"
    return one_line(f"the lines of {tally.texts} texts are kept in {output.path}; continue with: {resumed}")


def _command(args: Sequence[str]) -> str:
    return f"lightning-backdoor scan {shlex.join(args)}"


def _say(line: str) -> None:
    sys.stderr.write(f"{one_line(line)}\n")
