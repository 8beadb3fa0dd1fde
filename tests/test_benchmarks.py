"""benchmarks/: what they compare does the same thing. (Of the torture: test_faults, test_races, test_hostile …)"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_ours_and_the_plain_loop_that_it_is_timed_against_lower_the_same_loss() -> None:
    small = ["--data", "trees", "--layers", "1", "--repeats", "1", "--turn", "1", "--warm", "1"]
    typed = [sys.executable, "benchmarks/train.py", *small]
    done = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first 10 losses in float32, ours and plain:" in done.stdout and "TOO FAR" not in done.stdout
