"""``latent-prm COMMAND``: hides how a stage is found, how its options are read, and how it is allowed to fail.

Options are parsed before the stage, and with it torch, is imported, so ``latent-prm COMMAND --help`` is instant.
Exit codes: 0 done · 1 the stage said why not · 2 mistyped · 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

DONE, FAILED, MISTYPED, INTERRUPTED = 0, 1, 2, 130


class Command(NamedTuple):
    stage: str
    """The room whose ``main`` runs it."""
    options: str
    """What that ``main`` takes: a dataclass of ``latent_prm.options``."""
    help: str


COMMANDS = {
    "collect": Command("collector", "CollectOptions", "grow trees of latent paths and write them as shards"),
    "tune-noise": Command("tuner", "TuneNoiseOptions", "find the noise that mixes right and wrong paths most"),
    "train": Command("trainer", "TrainOptions", "train a latent process reward model on shards"),
    "evaluate": Command("evaluator", "EvaluateOptions", "measure how much a PRM improves the choice among paths"),
    "solve": Command("solver", "SolveOptions", "answer one question, with its probability, and show the vote"),
    "serve": Command("server", "ServeOptions", "score paths and answer questions over HTTP, with a page to watch"),
    "steer": Command(
        "steerer", "SteerOptions", "let a scorer steer the thinking, and measure accuracy against compute"
    ),
    "experiment": Command("experiment", "ExperimentOptions", "train and measure a grid of PRMs, into one table"),
    "inspect": Command("inspector", "InspectOptions", "print what a folder of shards holds"),
    "report": Command("reporter", "ReportOptions", "write one HTML page about a run, shards, an evaluation"),
    "verify": Command("verifier", "VerifyOptions", "check shards and checkpoints against what was written, and repair"),
    "export": Command("exporter", "ExportOptions", "write a PRM as a plain Hugging Face folder that others load"),
    "convert": Command("converter", "ConvertOptions", "turn another program's nested .pt files into shards"),
    "doctor": Command("doctor", "DoctorOptions", "say what is installed, what this machine has, and what is missing"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    A mistyped option leaves through ``SystemExit(2)``, ``--help`` through ``SystemExit(0)``.
    """
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return DONE if args else MISTYPED
    if args[0] == "--version":
        from latent_prm import __version__

        print(f"latent-prm {__version__}")
        return DONE
    if args[0] not in COMMANDS:
        _complain(_unknown(args[0]))
        return MISTYPED
    return _run(args[0], args[1:])


def _run(name: str, args: Sequence[str]) -> int:
    command = COMMANDS[name]
    try:
        import tyro

        options_class = getattr(import_module("latent_prm.options"), command.options)
        options = tyro.cli(options_class, args=args, prog=f"latent-prm {name}", use_underscores=True)
        import_module(f"latent_prm.{command.stage}").main(options)
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone, as in `latent-prm inspect | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, OSError) as error:
        if os.environ.get("LATENT_PRM_TRACEBACK"):
            traceback.print_exc()
        _complain(_sentence(error))
        return FAILED
    except (RuntimeError, MemoryError) as error:
        if not import_module("latent_prm.memory").is_full(error):
            raise
        _complain(_out_of_memory(name, error))
        return FAILED
    return DONE


def _usage() -> str:
    lines = "\n".join(f"  {name:<12}{command.help}" for name, command in COMMANDS.items())
    return f"usage: latent-prm COMMAND [OPTIONS]\n\n{lines}\n\nlatent-prm COMMAND --help lists its options."


def _unknown(name: str) -> str:
    close = get_close_matches(name, COMMANDS, n=1)
    meant = f'Did you mean "latent-prm {close[0]}"?' if close else f"Commands: {', '.join(COMMANDS)}."
    return f'There is no command "{name}". {meant}'


def _sentence(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _out_of_memory(name: str, error: Exception) -> str:
    options = getattr(import_module("latent_prm.options"), COMMANDS[name].options)
    lower = [f"--{one}" for one in ("pack_tokens", "batch_size", "num_paths") if hasattr(options, one)]
    way_out = f"Type a lower {' or '.join(lower)}, or --device cpu." if lower else "Close other programs."
    return f"Out of memory. {way_out} ({str(error).partition(chr(10))[0] or type(error).__name__})"


def _complain(message: str) -> None:
    print(f"✗ ERROR: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
