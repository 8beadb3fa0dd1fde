"""Growing trees, ours beside a plain loop, in one run: the same seeds, the same answers, and how many times faster.

    python benchmarks/collect.py                  # a CPU: the built-in reasoner, and 4 layers of Qwen3-0.6B's shape
    python benchmarks/collect.py --shape full     # a GPU: all 28 layers

The plain loop is what one would write from the LatentMAS paper: one path at a time, with a prefill and a cache of its
own. Both are warmed up, then timed in turns; what is printed is the median of each and of their ratio. The last lines
compare the memory that ``latent-prm collect --dry_run`` predicts with the peak of a real growth.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from full_shape import make_model

from latent_prm.growth import NOISE_FREE, Chance, Growth, draw
from latent_prm.prompts import ANSWER_FORM, METHOD, load_pipeline, render
from latent_prm.reasoner import Reasoner
from latent_prm.tasks import Question, Task, load_task
from latent_prm.tree import ReasoningTree

Grown = dict[tuple[str, int], tuple[str, torch.Tensor]]
"""By question and path number: the answer, and the latents from root to leaf."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    shape: Literal["builtin", "slice", "full"] | None = None
    """The built-in reasoner, 4 layers of Qwen3-0.6B's shape, or all 28. Left out: full with CUDA, else the others."""
    repeats: int = 3
    latent_steps: int = 10
    max_new_tokens: int = 32
    """Random weights never stop by themselves: every answer is as long as this."""
    questions: int | None = None
    """Left out: 32 for the built-in reasoner, 2 for a slice, 8 for the full shape."""


@torch.no_grad()
def plain(reasoner: Reasoner, questions: list[Question], growth: Growth, chances: dict[str, list[Chance]]) -> Grown:
    """One path at a time, from its first prompt to its last token."""
    grown: Grown = {}
    model, tokenizer, device = reasoner.model, reasoner.tokenizer, reasoner.device
    for question in questions:
        for index in range(growth.num_paths + 1):
            cache, latents, answer = None, [], []
            hidden = torch.empty(0)

            def forward(cache: object = None, **inputs: torch.Tensor) -> tuple[object, torch.Tensor]:
                out = model.base_model(past_key_values=cache, use_cache=True, **inputs)
                return out.past_key_values, out.last_hidden_state[:, -1]

            def read(prompt: str, cache: object, question: Question = question) -> tuple[object, torch.Tensor]:
                special = cache is None and not tokenizer.chat_template
                text = render(tokenizer, prompt, question, later=cache is not None)
                tokens = tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"]
                return forward(cache, input_ids=tokens.to(device))

            below = growth.num_paths
            for run, chance in zip(growth.runs, chances[question.id], strict=True):
                below //= run.branches  # leaves under each path of this run
                row = (index - 1) // below + 1 if index else 0
                if run.prompt is not None:
                    cache, hidden = read(run.prompt, cache)
                for noise in chance.noise[row].to(device):
                    latent = reasoner.latent_map(hidden)
                    latent = (latent + noise * latent.pow(2).mean(-1, keepdim=True).sqrt()).to(model.dtype)
                    latents.append(latent[0].float().cpu())
                    cache, hidden = forward(cache, inputs_embeds=latent[:, None])
            if growth.judger is not None:
                cache, hidden = read(growth.judger, cache)
            for _ in range(growth.max_new_tokens):
                token = int(model.lm_head(hidden).float().argmax())
                if token in reasoner.stop:
                    break
                answer.append(token)
                cache, hidden = forward(cache, input_ids=torch.tensor([[token]], device=device))
            text = tokenizer.decode(answer, skip_special_tokens=True).strip()
            grown[question.id, index + NOISE_FREE] = text, torch.stack(latents)
    return grown


def spread(trees: list[ReasoningTree]) -> Grown:
    """Our trees as `plain` gives them."""
    grown: Grown = {}
    for tree in trees:
        noisy = iter(range(len(tree.paths)))
        for leaf in tree.leaves():
            number = NOISE_FREE if tree.paths[leaf].noise_free else next(noisy)
            grown[tree.question_id, number] = tree.paths[leaf].answers[0].text, tree.chain_latents(leaf)
    return grown


def words() -> list[str]:
    """What the built-in pipelines' prompts say: a tokenizer that has learnt them makes prompts of a usual length."""
    pipelines = [load_pipeline(name) for name in ("solo", "sequential")]
    said = [agent.prompt or "" for pipeline in pipelines for agent in pipeline.agents]
    return [*said, *(pipeline.judger or "" for pipeline in pipelines), *METHOD.values(), *ANSWER_FORM.values()] * 8


def measure(name: str, reasoner: Reasoner, task: Task, questions: list[Question], growth: Growth, repeats: int) -> None:
    """Print how both did."""
    numbers = [NOISE_FREE, *range(growth.num_paths)]
    chances = {
        q.id: [draw(q.id, growth, run, numbers, reasoner.latent_dim) for run in range(len(growth.runs))]
        for q in questions
    }
    warm = questions[:1]
    plain(reasoner, warm, growth, chances)
    reasoner.grow(warm, task, growth)
    times: list[tuple[float, float]] = []
    reference, ours = {}, {}
    for _ in range(repeats):
        began = time.perf_counter()
        reference = plain(reasoner, questions, growth, chances)
        middle = time.perf_counter()
        ours = spread(reasoner.grow(questions, task, growth))
        times.append((middle - began, time.perf_counter() - middle))
    gap = max(
        ((ours[key][1] - latents).abs().max() / latents.pow(2).mean().sqrt()).item()
        for key, (_, latents) in reference.items()
    )
    alike = sum(ours[key][0] == reference[key][0] for key in reference)
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    ratio = statistics.median(a / b for a, b in times)
    print(
        f"{name:<42} plain {seconds[0]:8.2f} s   ours {seconds[1]:7.2f} s   {ratio:5.1f} x   "
        f"{alike} of {len(reference)} answers alike, latents to {gap:.1e} of their RMS",
        flush=True,
    )


def memory(model_path: str, task: str, options: Options) -> None:
    """Print what --dry_run predicts for a batch beside the peak of growing it, each in a process of its own."""
    common = ["collect", "--model_path", model_path, "--task", task, "--num_paths", "16", "--dtype", "float32"]
    common += ["--latent_steps", str(options.latent_steps), "--max_new_tokens", str(options.max_new_tokens)]
    common += ["--batch_size", "24", "--max_samples", "24", "--device", "cpu"]
    with tempfile.TemporaryDirectory() as scratch:
        common += ["--output_dir", scratch]
        run = "import sys\nfrom latent_prm.__main__ import main\nmain(sys.argv[1:])\n"
        run += "status = open('/proc/self/status').read()\nprint('peak', status.split('VmHWM:')[1].split()[0])"
        command = [sys.executable, "-c", run, *common]
        planned = subprocess.run([*command, "--dry_run"], capture_output=True, text=True, check=True).stdout
        done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"memory at its peak +([\d.]+) (\w+)", planned)
    assert found, planned
    predicted = float(found[1]) * {"MiB": 1 / 1024, "GiB": 1}[found[2]]
    peak = float(done.rsplit("peak ", 1)[1]) / 2**20  # not ru_maxrss: a child begins with its parent's
    print(
        f"memory of 24 questions x 16 paths: predicted {predicted:.2f} GiB, peak {peak:.2f} GiB, {predicted / peak:.2f}"
    )


def main(options: Options) -> None:
    """Measure each shape with solo x 16 and sequential x 20 paths."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = [options.shape] if options.shape else ["full"] if device == "cuda" else ["builtin", "slice"]
    task = load_task("arithmetic")
    drawn = task.questions("test", 0, 32)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        for shape in shapes:
            path = "builtin"
            if shape != "builtin":
                path = str(Path(scratch, shape))
                make_model(Path(path), 4 if shape == "slice" else 28, [*(q.text for q in drawn), *words()])
            reasoner = Reasoner.from_pretrained(path, device=device)
            count = options.questions or {"builtin": 32, "slice": 2, "full": 8}[shape]
            own = (
                {}
                if shape == "builtin"
                else {"latent_steps": options.latent_steps, "max_new_tokens": options.max_new_tokens}
            )
            for pipeline, paths in (("solo", 16), ("sequential", 20)):
                growth = reasoner.growth(pipeline=pipeline, num_paths=paths, seed=1, **own)
                name = f"{shape}, {pipeline} x {paths}, {count} questions"
                measure(name, reasoner, task, drawn[:count], growth, options.repeats)
            if device == "cpu":
                memory(path, "arithmetic", options)


if __name__ == "__main__":
    main(tyro.cli(Options, use_underscores=True))
