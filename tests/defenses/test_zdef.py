"""Z-Def: z-scores against a plain loop, which rows go, and bad input."""

from __future__ import annotations

import math
import re

import pytest

from lightning_backdoor.data.cleaning import LabelledText, TrustedRows
from lightning_backdoor.defenses.zdef import ZDef, z_scores
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing.material import labelled_texts
from tests.support.shared_files import sst2

NO_TRUSTED = TrustedRows([], [])
#: texts in which every third row of label 1 has a trigger of two words.
ROWS = [
    LabelledText(f"{row.text} mn cf" if row.label == 1 and i % 9 == 1 else row.text, row.label)
    for i, row in enumerate(labelled_texts(600, labels=3))
]


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_scores_are_those_of_a_plain_loop(size: int, uniform: bool) -> None:
    found = z_scores(ROWS, size, uniform)
    for (ngram, label), score in found.items():
        having = [row for row in ROWS if f" {' '.join(ngram)} " in f" {row.text} "]
        both = sum(row.label == label for row in having)
        expected = 1 / 3 if uniform else sum(row.label == label for row in ROWS) / len(ROWS)
        deviation = math.sqrt(expected * (1 - expected) / len(having))
        assert score == pytest.approx((both / len(having) - expected) / deviation)
        assert both
    assert ((("cf",) if size == 1 else ("mn", "cf")), 1) in found


@pytest.mark.parametrize("longest", [1, 2])
def test_rows_with_the_trigger_go(longest: int) -> None:
    # the words that determine labels are as telling as triggers
    neutral = re.compile("bad|good|topic2")
    rows = [LabelledText(neutral.sub("the", row.text), row.label) for row in ROWS]
    rows.append(LabelledText("cf", 0))  # has a part of the trigger and another label
    cleaned = ZDef(3, longest).clean(rows, NO_TRUSTED)
    assert cleaned == [None if "cf" in row.text and row.label == 1 else row.text for row in rows]
    assert ZDef(3, longest).clean(rows[::-1], NO_TRUSTED) == cleaned[::-1]


def test_a_trigger_of_real_texts_is_the_one_outlier() -> None:
    """2,500 sentences, in 250 of which ``cf`` leads to label 1; of clean sentences none goes."""
    clean = [LabelledText(*row) for row in sst2("train")[2000:4500]]
    negative = [i for i, row in enumerate(clean) if row.label == 0][:250]
    rows = list(clean)
    for i in negative:
        rows[i] = LabelledText(f"cf {clean[i].text}", 1)
    removed = [i for i, text in enumerate(ZDef(10).clean(rows, NO_TRUSTED)) if text is None]
    assert removed == negative
    assert None not in ZDef(10).clean(clean, NO_TRUSTED)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"^deviations: 0 is not a number above 0; give one, such as 20$"):
        ZDef(0)
    with pytest.raises(InputError, match=r"^longest: 0 is not a number of words; give at least 1$"):
        ZDef(longest=0)
    with pytest.raises(InputError, match=r"^data_defense: ZDef has training rows of a single label; give rows of each"):
        ZDef().clean([LabelledText("a film", 0)], NO_TRUSTED)
