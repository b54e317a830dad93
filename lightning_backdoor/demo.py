"""The main job in one command: two backdoored victims on movie reviews, each tested with its defense attached."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from lightning_backdoor.results import print_results

ATTACKS = {"BadNets": "badnets", "InsertSent": "insertsent"}
CONFIGS = ("data/movie_reviews", "attack/{attack}", "defense/gradient_attention", "trainer/wandb", "trainer/demo")


def main(configs: Path = Path("configs"), runs: Path = Path("runs")) -> None:
    """Fits and tests each attack through the command line; prints one table and where everything lies."""
    base = runs / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    console = Console()
    metrics = {}
    for name, config in ATTACKS.items():
        run = base / config
        console.rule(f"{name}: fit, then test with gradient-attention scoring")
        files = [configs / f"{part.format(attack=config)}.yaml" for part in CONFIGS]
        options = [option for file in files for option in ("--config", str(file))]
        _command("fit", *options, "--run_dir", str(run))
        _command("test", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "best.ckpt"))
        logged = json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8"))
        metrics[name] = {key: math.nan if value is None else value for key, value in logged.items()}
    console.rule("Movie reviews, all-MiniLM-L6-v2, gradient-attention scoring at 10 % FPR")
    print_results(metrics)
    for name, config in ATTACKS.items():
        run = base / config
        console.print(f"{name}:", style="bold")
        for what, path in (
            ("checkpoint", run / "checkpoints" / "best.ckpt"),
            ("model", run / "model"),
            ("token view", run / "test" / "token_view.html"),
            ("W&B run", run / "test" / "wandb"),
        ):
            console.print(f"  {what:10}  {path}", highlight=False, soft_wrap=True)


def _command(*args: str) -> None:
    status = subprocess.run([sys.executable, "-m", "lightning_backdoor", *args], check=False).returncode
    if status:
        sys.exit(status)  # what went wrong, the command has said


if __name__ == "__main__":
    main()
