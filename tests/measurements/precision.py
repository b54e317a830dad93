"""How fast the victims of ``configs/benchmark/demo.yaml`` are trained, over float32 and plain passes of the network.

The victims are trained as ``fit`` trains them: in the precision ``auto``, with a last layer that is computed for the
readout token where only that is read, and with frozen layers without dropout.

Run ``python -m tests.measurements.precision --data sst2``.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

from lightning.pytorch import Callback, seed_everything
from transformers import PreTrainedModel

from lightning_backdoor.benchmark.fragments import yaml_text
from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.commands.quiet import hide_bars_of_transformers, hide_noise
from lightning_backdoor.commands.run_cli import RunCLI
from lightning_backdoor.commands.run_folder import VARIABLE
from lightning_backdoor.files.presets import preset_path
from lightning_backdoor.models import captures
from lightning_backdoor.victim import classifier
from lightning_backdoor.victim.network import freeze
from tests.measurements.pairs import Comparison, Stopwatch, alternate, load_average, parse, parser, print_table

GRID = "configs/benchmark/demo.yaml"
#: options of ``fit`` that leave out all but the training steps.
STEPS_ONLY = ("--trainer.limit_val_batches=0", "--trainer.enable_checkpointing=false", "--trainer.logger=false")


@contextmanager
def plain_passes() -> Iterator[None]:
    """Within the block, training computes all layers for all tokens, frozen ones with dropout."""

    def freeze_weights(network: PreTrainedModel, parts: Sequence[str]) -> None:
        freeze(network, parts)
        network.train()

    with (
        patch.object(captures, "readout_only", lambda *batch: nullcontext()),
        patch.object(classifier, "freeze", freeze_weights),
    ):
        yield


def texts_per_second(config: Path, precision: str, clock: str) -> float:
    """Texts per second from the first training step to the last, in the trainer that ``fit`` makes of a config."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            args = [f"--config={config}", f"--run_dir={folder}/run", f"--trainer.precision={precision}", *STEPS_ONLY]
            cli = RunCLI("fit", args)
        finally:
            os.environ.pop(VARIABLE, None)
        stopwatch, callback = Stopwatch(clock), Callback()
        callback.on_train_start, callback.on_train_end = stopwatch.start, stopwatch.stop  # type: ignore[method-assign]
        cli.callbacks.append(callback)
        cli.folder.mkdir()
        seed_everything(0, verbose=False)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        return len(cli.datamodule.training_rows()) * (cli.trainer.max_epochs or 0) / stopwatch.seconds


def demo(args: argparse.Namespace) -> Iterator[Comparison]:
    victim = next(cell.victim for cell in Grid(preset_path(GRID)).cells if cell.attack == "BadNets")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(yaml_text(victim.config), encoding="utf-8")

        def by_library() -> float:
            return texts_per_second(config, "auto", args.clock)

        def by_plain_passes() -> float:
            with plain_passes():
                return texts_per_second(config, "32-true", args.clock)

        pairs = list(alternate(by_library, by_plain_passes, args.rounds))
    yield Comparison("training of the demo's victim / in float32 by plain passes", "texts/s", ">= 1.5", pairs)


PARTS = {"demo": demo}


def main() -> None:
    args = parse(parser("How fast the demo's victims are trained, over float32 and plain passes.", rounds=4))
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    hide_noise()
    hide_bars_of_transformers()
    load_before = load_average()
    print_table([comparison for measure in PARTS.values() for comparison in measure(args)], args, load_before)


if __name__ == "__main__":
    main()
