"""``outcomes.csv``: the rates that ``test`` logs can be computed from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_backdoor.cli import main
from lightning_backdoor.outputs.outcomes import read_outcomes


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


@pytest.mark.parametrize("defense", ["", "gradient_attention", "strip"])
def test_the_logged_rates_can_be_computed_from_the_file(inside: Path, trained: Path, defense: str) -> None:
    presets = Path(__file__).parents[2] / "configs" / "defense"
    options = ["--config", str(presets / f"{defense}.yaml")] if defense else []
    before = set(trained.glob("test*"))
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    assert main(["test", "--config", str(trained / "config.yaml"), "--ckpt_path", checkpoint, *options]) == 0
    (folder,) = set(trained.glob("test*")) - before
    logged = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    (path,) = folder.rglob("outcomes.csv")
    outcomes = read_outcomes(path)
    clean, poisoned = ([o for o in outcomes if o.poisoned is kind] for kind in (False, True))
    assert [o.index for o in clean] == sorted(o.index for o in clean)
    rates = {"cacc": share([o.prediction == o.label for o in clean])}
    rates["asr"] = share([o.prediction == o.target_label for o in poisoned])
    prefix = f"test/{defense}/" if defense == "strip" else "test/"
    if defense:
        rates["cacc_defended"] = share([o.outcome == o.label for o in clean])
        rates["asr_defended"] = share([o.outcome == o.target_label for o in poisoned])
        rates["fpr"], rates["tpr"] = (share([bool(o.flagged) for o in kind]) for kind in (clean, poisoned))
        rates["tpr_confirmed"] = share([bool(o.confirmed) for o in poisoned])
    else:
        assert {(o.defended_prediction, o.flagged, o.score) for o in outcomes} == {(None, None, None)}
    for name, value in rates.items():
        of_name = "test/" if name in ("cacc", "asr") else prefix
        assert value == pytest.approx(logged[of_name + name], abs=1e-6), name
