"""The token view of a scan: some of its texts as HTML, with each token shaded by its score."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_backdoor.commands.scan.facts import Facts
from lightning_backdoor.commands.scan.gate import without_repair
from lightning_backdoor.commands.scan.tally import Line
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.files.names import check_file

if TYPE_CHECKING:
    from lightning_backdoor.outputs.token_view import ViewedText

#: upper limit on the number of texts in the token view.
TEXTS = 200


class Page:
    """Keeps the first flagged texts of a scan, and where these are few the first others, for the token view.

    Args:
        path: the file to write.
        defenses: names of the defenses.

    Raises:
        InputError: its name does not end in ``.html``, or it cannot be written.
    """

    def __init__(self, path: str, defenses: Sequence[str]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in (".html", ".htm"):  # so that it never replaces texts or results
            raise InputError("html", f"{path} does not end in .html", "give a name that does")
        check_file(self.path, "html")
        self.defenses = defenses
        self._count = 0
        self._flagged_count = 0
        self._flagged: list[tuple[int, str]] = []
        self._others: list[tuple[int, str]] = []

    def add(self, line: Line) -> None:
        """Keeps a line of the output if it is among the first."""
        flagged = any(line.flags.values())
        kept = self._flagged if flagged else self._others
        if len(kept) < TEXTS:
            kept.append((self._count, line.json))
        self._count += 1
        self._flagged_count += flagged

    def write(self, facts: Mapping[str, Facts], words: Mapping[str, str], shut: Collection[str] = ()) -> str:
        """Writes the file.

        Args:
            facts: what is known about the threshold of each defense.
            words: the words that stand out among the flagged texts, as they are shown, by the name of the defense.
            shut: names of the defenses whose gate is shut.

        Returns:
            One line that says which texts it has.
        """
        from lightning_backdoor.outputs.token_view import page_html
        from lightning_backdoor.outputs.word_inventory import words_sentence

        others = self._others[: TEXTS - len(self._flagged)]
        rows = [
            row
            for index, line in [*self._flagged, *others]
            for row in self._rows(index, json.loads(without_repair(line, self.defenses, shut)), self.defenses)
        ]
        thresholds = {name: known.threshold for name, known in facts.items()}
        sentences = (words_sentence(shown, name if len(words) > 1 else "") for name, shown in words.items())
        notes = [*filter(None, sentences)]
        write_whole(self.path, page_html(rows, "Token view of a scan", thresholds, labelled=False, notes=notes))
        flagged = f"{len(self._flagged)} of {self._flagged_count} flagged texts"
        return f"token view: {self.path}, the first {flagged} and {len(others)} others"

    @staticmethod
    def _rows(index: int, content: dict[str, Any], defenses: Sequence[str]) -> list[ViewedText]:
        rows: list[ViewedText] = []
        for name in defenses:
            result = content if len(defenses) == 1 else content[name]
            flagged = result["flagged"]
            defended = result["purified_prediction"] or "rejected" if flagged else content["prediction"]
            rows.append(
                {
                    "index": index,
                    "text": content["text"],
                    "spans": [],
                    "poisoned": False,
                    "label": "",
                    "prediction": content["prediction"],
                    "defended_prediction": defended,
                    "flagged": flagged,
                    "confirmed": flagged and defended != content["prediction"],
                    "purified_text": result["purified_text"],
                    "score": result["anomaly_score"],
                    "tokens": [
                        (token["start"], token["end"], token["score"])
                        for token in result["tokens"]
                        if token["score"] is not None
                    ],
                    "defense": name if len(defenses) > 1 else "",
                }
            )
        return rows
