"""The whole chain on the built-in reasoner: ``make demo``, or ``python -m latent_prm.demo``.

Fresh trees, a PRM trained on them from the built-in backbone, and both it and the PRM that comes with the package
measured on fresh questions that neither has seen. Nothing but those models was made before, each by its own recipe.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from latent_prm.options import CollectOptions, EvaluateOptions, TrainOptions


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Grow trees, train a PRM on them, and measure the choice among paths, all on the built-in reasoner."""

    output_dir: str | None = None
    """Where everything goes. Left out: reports/demo_<timestamp>."""
    train_questions: int = 3000
    """Questions to train on, half arithmetic and half search."""
    test_questions: int = 1200
    """Questions to measure on, from the test split."""
    num_epochs: int = 2
    """Passes over the training questions."""
    seed: int = 42
    """Fixes the questions, the noise and the training."""


def main(options: DemoOptions) -> None:
    """Collect, collect for the test, train, evaluate, show."""
    from latent_prm import collector, trainer  # torch comes with them: not for --help

    began = time.time()
    folder = Path(options.output_dir or time.strftime("reports/demo_%Y%m%d_%H%M%S"))
    train_dir, test_dir = str(folder / "prm_data"), str(folder / "prm_data_test")
    say("1/4  grow: trees to learn from")
    collector.main(CollectOptions(output_dir=train_dir, max_samples=options.train_questions, seed=options.seed))
    say("2/4  grow: trees to be measured on, from the test split")
    collector.main(
        CollectOptions(output_dir=test_dir, max_samples=options.test_questions, seed=options.seed, split="test")
    )
    say("3/4  learn: a fresh PRM, from the built-in backbone")
    logging.getLogger().handlers.clear()  # the collector's; the trainer has its own, and each line is to be said once
    run = trainer.main(
        TrainOptions(
            data_dir=train_dir,
            output_dir=str(folder / "qwen_prm"),
            num_epochs=options.num_epochs,
            batch_size=64,
            learning_rate=3e-4,
            pooling_strategy="last",
            loss="bce+0.5*listwise",
            supervise="steps",
            mixed_precision=False,
            save_steps=1000,
            logging_steps=10,
            seed=options.seed,
        )
    )
    say("4/4  choose: one answer out of N paths")
    measure(folder, Path(run), test_dir, options)
    print(f"\nEverything is in {folder}. The demo took {time.time() - began:.0f} s.")


def measure(folder: Path, run: Path, test_dir: str, options: DemoOptions) -> None:
    """Both PRMs on the same paths: one table, and pictures of each."""
    from latent_prm import evaluator

    found = {}
    for name, checkpoint in {"fresh PRM": str(run / "best"), "shipped PRM": "builtin"}.items():
        asked = EvaluateOptions(checkpoint=(checkpoint,), data_dir=test_dir, seed=options.seed, rivals=False)
        found[name], bad_files = evaluator.measure(asked)
        where = folder / name.replace(" ", "_")
        evaluator.save(found[name], where, {"options": asdict(asked), "bad_files": bad_files})
    print(f"\nfresh PRM: trained just now on {options.train_questions} questions.", end=" ")
    print("shipped PRM: comes with the package, trained in the same way on many more.")
    evaluator.print_evaluation(found)


def say(line: str) -> None:
    """A headline between the stages' own output."""
    print(f"\n━━ {line}\n", flush=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(DemoOptions, prog="python -m latent_prm.demo", use_underscores=True))
    except (ValueError, OSError) as error:
        sys.exit(f"✗ ERROR: {error}")
