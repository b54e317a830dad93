"""One scan: thresholds from clean texts, then a line for each text, by one process or several."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from lightning_backdoor.commands.scan.calibration import Guard, calibrate
from lightning_backdoor.commands.scan.facts import Facts
from lightning_backdoor.commands.scan.output import Output
from lightning_backdoor.commands.scan.page import Page
from lightning_backdoor.commands.scan.processes import Processes
from lightning_backdoor.commands.scan.resume import resume
from lightning_backdoor.commands.scan.scoring import score_group
from lightning_backdoor.commands.scan.settings import SHARD, scan_settings, write_settings
from lightning_backdoor.commands.scan.tally import Tally
from lightning_backdoor.commands.scan.texts import count_texts, read_all
from lightning_backdoor.errors import InputError, one_line
from lightning_backdoor.outputs.progress import progress
from lightning_backdoor.victim import TextClassifier, load_trained

#: number of batches that are read together, so that texts of similar length are scored together.
BATCHES_AHEAD = 16


class Scan:
    """One scan, in one of its processes.

    Args:
        options: options of the command.
        model: the checkpoint or Hugging Face folder.
        guards: the defenses.
        described: what determines the results of each defense, by its name.
        processes: the processes of the scan.

    Raises:
        InputError: the calibration file holds no text or cannot be read.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        model: Path,
        guards: Sequence[Guard],
        described: Mapping[str, Any],
        processes: Processes,
    ) -> None:
        self.options, self.model, self.guards = options, model, guards
        self.described, self.processes = described, processes
        self.quoting = None if options.quoting is None else options.quoting == "yes"
        self.group_size = BATCHES_AHEAD * options.batch_size
        clean = read_all([options.calibration], options.column, self.quoting, option="calibration")
        self.calibration = [text for text in clean if text.strip()]
        if not self.calibration:
            raise InputError("calibration", f"{options.calibration} holds no text", "give trusted clean texts")

    def run(self, output: Output, tally: Tally, page: Page | None) -> dict[str, Facts]:
        """Scans, as the first process.

        Args:
            output: the output, which gets the lines.
            tally: counts the lines.
            page: the token view, which gets the lines as well; or None.

        Returns:
            What is known about the threshold of each defense.

        Raises:
            InputError: the input is invalid; the lines of earlier texts are kept.
        """
        options = self.options
        first, last, shard = self._bounds()
        texts = read_all(options.input, options.column, self.quoting, first)
        if last is not None and shard is not None:
            texts = islice(texts, last - first)
        settings = {} if output.special else {**self._settings(), SHARD: shard}
        source = one_line(" ".join(options.input))
        begun = resume(output, texts, settings, self.group_size, tally, page, options.resume, source)
        victim, facts = self._prepared()
        file = output.opened()
        if settings and output.name is not None and not tally.texts:
            write_settings(output.name, settings, facts)
        total = None if last is None else last - first
        with progress("scoring", total, "texts", tally.texts) as advance:
            score = partial(score_group, self.guards, victim, batch_size=options.batch_size)
            groups = _groups(chain(begun.texts, begun.rest), self.group_size)
            if self.processes.alone:  # several say how far they are when they have sent their lines
                score = partial(score, done=advance)
            lines = chain.from_iterable(self.processes.map(score, groups))
            # a partly written group is scored again, so that its results equal an uninterrupted run to the last digit
            for line in islice(lines, len(begun.texts), None):
                file.write(line.json)
                file.flush()
                tally.add(line)
                if page is not None:
                    page.add(line)
                if not self.processes.alone:
                    advance(1)
        return facts

    def serve(self) -> None:
        """Scores what the first process sends, as one of the others."""
        victim, _ = self._prepared()
        self.processes.serve(lambda group: score_group(self.guards, victim, group, self.options.batch_size))

    def _prepared(self) -> tuple[TextClassifier, dict[str, Facts]]:
        """The victim, and the thresholds of the first process, which are set in the defenses."""
        processes = self.processes
        victim = load_trained(str(self.model), self.options.max_length)
        victim.to(processes.device)
        facts = {}
        for guard in self.guards:
            guard.defense.to(processes.device)
            facts[guard.name] = calibrate(guard, victim, self.calibration, self.options.batch_size)
            if processes.first and facts[guard.name].too_few:
                sys.stderr.write(f"warning: {guard.name}: {facts[guard.name].warning()}\n")
        states = processes.same([_on_processor(guard.defense.state_dict()) for guard in self.guards])
        if not processes.first:
            for guard, state in zip(self.guards, states, strict=True):
                guard.defense.load_state_dict(state)
        return victim, facts

    def _bounds(self) -> tuple[int, int | None, dict[str, Any] | None]:
        """The first text to scan, the one after the last where it is known, and how the settings record the shard."""
        options = self.options
        if options.shard is None:
            with suppress(InputError):  # reported when it is reached, with the lines before it written
                return 0, count_texts(options.input, options.column, self.quoting), None
            return 0, None, None
        texts = count_texts(options.input, options.column, self.quoting)
        if texts is None:
            raise InputError("shard", "standard input and pipes cannot be divided", "give files as --input")
        first, last = options.shard.bounds(texts, self.group_size)
        shard = {"number": options.shard.number, "of": options.shard.of, "texts": [first, last], "input": texts}
        return first, last, shard

    def _settings(self) -> dict[str, Any]:
        """What determines the line of a text."""
        names = ("column", "quoting", "fpr", "batch-size", "max-length", "seed")
        options = {name: getattr(self.options, name.replace("-", "_")) for name in names}
        return scan_settings(self.model, self.calibration, {**options, "defense": dict(self.described)})


def _groups(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    """Cuts texts into groups; where reading them fails, the texts before come first as a group of their own."""
    while True:
        group: list[str] = []
        try:
            for text in islice(texts, size):
                group.append(text)
        except InputError:
            if group:
                yield group
            raise
        if not group:
            return
        yield group


def _on_processor(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
