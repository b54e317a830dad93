"""One scan: thresholds from clean texts, the set pass, then a line for each text, by one process or several."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from lightning_backdoor.commands.scan.calibration import Guard, calibrate, facts_of
from lightning_backdoor.commands.scan.directions import belongs_to
from lightning_backdoor.commands.scan.facts import Facts
from lightning_backdoor.commands.scan.gate import is_holding_back, no_more
from lightning_backdoor.commands.scan.output import Output
from lightning_backdoor.commands.scan.page import Page
from lightning_backdoor.commands.scan.processes import Processes
from lightning_backdoor.commands.scan.resume import resume
from lightning_backdoor.commands.scan.scoring import score_group
from lightning_backdoor.commands.scan.set_pass import SetPass, directions_path
from lightning_backdoor.commands.scan.settings import DIRECTIONS, SHARD, scan_settings, write_settings
from lightning_backdoor.commands.scan.study import study_group
from lightning_backdoor.commands.scan.tally import Tally
from lightning_backdoor.commands.scan.texts import count_texts, read_all, read_once
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

    Attributes:
        students: the defenses that study the input before they judge it.

    Raises:
        InputError: the calibration file holds no text or cannot be read, or there are directions that none studies.
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
        self.students = [guard for guard in guards if guard.defense.studies]
        if options.directions is not None and not self.students:
            names = " and ".join(guard.name for guard in guards)
            raise InputError("directions", f"{names} studies no set, but judges each text by itself", "leave it out")
        self._set_pass: SetPass | None = None

    @property
    def kept(self) -> str | None:
        """What an interrupted scan leaves of its set pass, for the user; None if that is nothing."""
        return None if self._set_pass is None else self._set_pass.kept

    @property
    def directions(self) -> str | None:
        """The file of the directions and the number of their texts, for the user; None if there is none."""
        if self._set_pass is None or self._set_pass.path is None:
            return None
        return f"{self._set_pass.path}, of {self._set_pass.directions.texts} texts"

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
        settings = {} if output.special and not self.students else {**self._settings(), SHARD: shard}
        source = one_line(" ".join(options.input))
        self._set_pass = self._new_set_pass(output, settings) if self.students else None
        with self._set_pass or nullcontext():
            if self._set_pass is not None:
                settings[DIRECTIONS] = self._set_pass.sets
            is_complete = is_holding_back(output, options.gate, options.resume)
            begun = resume(output, texts, settings, self.group_size, tally, page, options.resume, source)
            if is_complete:
                begun = begun._replace(rest=no_more(begun.rest, output))
            victim, facts = self._prepared()
            if self._set_pass is not None:
                facts |= self._study(self._set_pass, victim)
        file = output.opened()
        if not output.special and output.name is not None and not tally.texts:
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
        """Studies and scores what the first process sends, as one of the others."""
        victim, _ = self._prepared()
        if self.students:
            self.processes.serve(lambda group: study_group(self.students, victim, group, self.options.batch_size))
            self._share()
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
        self._share()
        return victim, facts

    def _share(self) -> None:
        """Gives the defenses of all processes the state of those of the first."""
        states = self.processes.same([_on_processor(guard.defense.state_dict()) for guard in self.guards])
        if not self.processes.first:
            for guard, state in zip(self.guards, states, strict=True):
                guard.defense.load_state_dict(state)

    def _new_set_pass(self, output: Output, settings: Mapping[str, Any]) -> SetPass:
        options, given = self.options, self.options.directions is not None
        names = [guard.name for guard in self.students]
        beside = None if output.special or output.name is None else directions_path(output.name)
        return SetPass(
            path=Path(options.directions) if given else beside,
            given=given,
            add=options.study,
            resumed=options.resume,
            belongs=belongs_to(settings, {name: self.described[name] for name in names}),
            texts=None
            if read_once(options.input)
            else lambda start: read_all(options.input, options.column, self.quoting, start),
            students=" and ".join(names),
        )

    def _study(self, set_pass: SetPass, victim: TextClassifier) -> dict[str, Facts]:
        """Shows the input to the defenses that study, or what is kept of earlier ones; returns their new facts."""
        size = self.options.batch_size
        study = partial(study_group, self.students, victim, batch_size=size)
        groups = set_pass.groups(lambda texts: _groups(texts, self.group_size))
        sums = set_pass.complete(self.processes.map(study, groups), study([])[1])
        if set_pass.directions.texts:
            for name, defense in self.students:
                defense.adopt(sums[name])
        self._share()
        return {guard.name: facts_of(guard.defense, victim, self.calibration, size) for guard in self.students}

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
