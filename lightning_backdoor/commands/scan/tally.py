"""The counts of a scan, and the lines with which it ends."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_backdoor.commands.scan.facts import Facts


class Line(NamedTuple):
    """A line of the output.

    Attributes:
        json: the line, with its end.
        text: the text that was scored.
        prediction: name of the predicted class.
        flags: by the name of each defense, whether it flags the text.
        alone: the same by scores that do not depend on the set, which the verdict counts.
    """

    json: str
    text: str
    prediction: str
    flags: dict[str, bool]
    alone: dict[str, bool]


class Tally:
    """Counts the texts of a scan by prediction, and those that each defense flags.

    Args:
        defenses: names of the defenses.

    Attributes:
        predicted: number of texts by the name of the predicted class.
        flagged: the same for the flagged texts, by the name of the defense.
        alone: the same for the texts that are flagged by scores that do not depend on the set.
        inventories: the words of the flagged texts, by the name of the defense.
    """

    def __init__(self, defenses: Sequence[str]) -> None:
        from lightning_backdoor.outputs.word_inventory import WordInventory  # with NumPy, which help does not need

        self.predicted: Counter[str] = Counter()
        self.flagged: dict[str, Counter[str]] = {name: Counter() for name in defenses}
        self.alone: dict[str, Counter[str]] = {name: Counter() for name in defenses}
        self.inventories = {name: WordInventory() for name in defenses}

    @property
    def texts(self) -> int:
        """Number of texts."""
        return self.predicted.total()

    def add(self, line: Line) -> None:
        """Counts a line of the output."""
        self.predicted[line.prediction] += 1
        for name, flag in line.flags.items():
            self.inventories[name].add([line.text], [line.alone[name]])
            for counts, counted in ((self.flagged, flag), (self.alone, line.alone[name])):
                if counted:
                    counts[name][line.prediction] += 1

    def words(self) -> dict[str, str]:
        """The words that stand out among the flagged texts, as they are shown, by the name of the defense."""
        from lightning_backdoor.outputs.word_inventory import words_text

        return {name: words_text(inventory.standing_out()) for name, inventory in self.inventories.items()}

    def shut(self, facts: Mapping[str, Facts]) -> list[str]:
        """The defenses whose gate is shut: no more texts are flagged than clean texts explain, and no word stands out.

        Args:
            facts: what is known about the threshold of each defense.
        """
        words = self.words()
        return [name for name, known in facts.items() if not words[name] and not self._too_many(name, known)]

    def summary(self, facts: Mapping[str, Facts], gate: bool = False) -> tuple[list[str], list[str]]:
        """The lines with which a scan ends.

        Args:
            facts: what is known about the threshold of each defense.
            gate: whether there is a gate, of which the verdicts then say whether it is shut.

        Returns:
            The threshold of each defense with the counts of flagged texts, and the verdict by each defense.
        """
        alone = len(facts) == 1
        lines = []
        for name, known in facts.items():
            lines.append(f"{'' if alone else f'{name}: '}{known.line()}")
            if self.texts:
                shares = (f"{self.flagged[name][label]} of {n} {label}" for label, n in sorted(self.predicted.items()))
                lines.append(f"{'' if alone else f'{name}: '}flagged by predicted label: {', '.join(shares)}")
        words, shut = self.words(), self.shut(facts)
        said = {name: "; the gate is " + ("shut: nothing is repaired" if name in shut else "open") for name in facts}
        verdicts = [self._verdict(name, known, words[name], alone) for name, known in facts.items()]
        return lines, [f"{verdict}{said[name] if gate else ''}" for name, verdict in zip(facts, verdicts, strict=True)]

    def _log_p(self, name: str, facts: Facts) -> float:
        from lightning_backdoor.outputs.exact_tests import log_p_flagged

        return log_p_flagged(self.alone[name].total(), self.texts, facts.allowed, facts.texts)

    def _too_many(self, name: str, facts: Facts) -> bool:
        """Whether more texts are flagged than clean texts explain."""
        from lightning_backdoor.outputs.exact_tests import SIGNIFICANT

        return self._log_p(name, facts) < math.log(SIGNIFICANT)

    def _verdict(self, name: str, facts: Facts, words: str, alone: bool) -> str:
        """One line stating whether more texts are flagged than a clean stream of texts explains, and which words."""
        from lightning_backdoor.outputs.exact_tests import p_text

        begin = "verdict: " if alone else f"verdict by {name}: "
        if not self.texts:
            return f"{begin}no texts"
        flagged = self.alone[name].total()
        clean = f"{facts.allowed} of {facts.texts} clean texts flagged"
        if facts.budget is not None:
            clean = f"a budget of {100 * facts.budget:g} % of clean texts"
        by = "" if self.alone[name] == self.flagged[name] else " by themselves"
        share = f"{flagged} of {self.texts} texts flagged{by}, {100 * flagged / self.texts:.1f} %"
        test = f"{share}, with {clean} (p = {p_text(self._log_p(name, facts))})"
        standing_out = f"; words that stand out in flagged texts: {words}" if words else ""
        if not self._too_many(name, facts):
            return f"{begin}{test}; no more than clean texts explain{standing_out}"
        counts = self.alone[name]
        label = min(counts, key=lambda label: (-counts[label], label))
        return f"{begin}{test}; more than clean texts explain, most of them predicted as {label!r}{standing_out}"


def parsed_line(text: str, defenses: Sequence[str]) -> Line | None:
    """A line of the output as it was written; None if the text is not one.

    Args:
        text: the line, with its end.
        defenses: names of the defenses of the scan.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("text"), str):
        return None
    results = {name: content if len(defenses) == 1 else content.get(name) for name in defenses}
    flags = {name: _flag(result, "flagged") for name, result in results.items()}
    prediction = content.get("prediction")
    if not isinstance(prediction, str) or any(flag is None for flag in flags.values()):
        return None
    known = {name: bool(flag) for name, flag in flags.items()}
    alone = {name: _flag(result, "flagged_alone") for name, result in results.items()}
    own = {name: known[name] if flag is None else flag for name, flag in alone.items()}
    return Line(text, content["text"], prediction, known, own)


def _flag(result: Any, name: str) -> bool | None:
    flag = result.get(name) if isinstance(result, dict) else None
    return flag if isinstance(flag, bool) else None
