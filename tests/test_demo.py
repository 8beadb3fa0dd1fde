"""What comes with the package: the built-in reasoner, its PRM, the recipe that made it, and the demo."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from latent_prm.demo import prm_folder, reader_folder, reasoner_folder
from latent_prm.demo.reader import deepen, judge, truly_next, write_answers
from latent_prm.demo.recipe import Lesson, Recipe, Term, build_model, build_tokenizer, draw_problems, train
from latent_prm.model import QwenLatentPRM
from latent_prm.problems import ArithmeticProblem, SearchProblem, draw_search
from latent_prm.reasoner import Reasoner
from latent_prm.shards import outcomes
from latent_prm.tasks import load_task


def test_the_built_in_reasoner_is_an_ordinary_folder() -> None:
    model = AutoModelForCausalLM.from_pretrained(reasoner_folder())
    tokenizer = AutoTokenizer.from_pretrained(reasoner_folder())
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert sum(p.numel() for p in model.parameters()) < 3_000_000
    assert model.config.latent_prm["latent_map"]["factor"] > 0
    assert tokenizer.decode(tokenizer("Ann has 12 apples.")["input_ids"]) == "Ann has 12 apples ."
    assert tokenizer.convert_ids_to_tokens(list(range(100))) == [str(n) for n in range(100)]


def test_its_vocabulary_covers_every_question() -> None:
    tokenizer = AutoTokenizer.from_pretrained(reasoner_folder())
    texts = [
        q.text
        for split in ("train", "validation", "test")
        for q in load_task("arithmetic,search").questions(split, 3, 200)
    ]
    assert tokenizer.unk_token_id not in {token for ids in tokenizer(texts)["input_ids"] for token in ids}


@pytest.mark.parametrize("name", ["arithmetic", "search"])
def test_it_is_fallible_and_its_paths_are_worth_choosing_from(name: str) -> None:
    task, reasoner = load_task(name), Reasoner.from_pretrained("builtin", device="cpu")
    accuracy = outcomes(reasoner.grow(task.questions("test", 0, 300), task))["accuracy"]
    margin = 0.06  # two standard errors of 300 questions; the card's 1,500 have the exact figures
    assert 0.3 - margin < accuracy["noise_free"] < 0.7 + margin
    assert accuracy["majority"] > accuracy["noise_free"] - margin
    assert accuracy["any_path"] > max(accuracy["noise_free"], accuracy["majority"]) + 0.15 - margin


def test_the_card_holds_the_recipe() -> None:
    card = (reasoner_folder() / "README.md").read_text(encoding="utf-8")
    recipe = json.loads((reasoner_folder() / "config.json").read_text())["latent_prm"]["recipe"]
    assert json.loads(re.search(r"```json\n(.*?)```", card, re.S)[1]) == recipe  # type: ignore[index]
    assert "### arithmetic" in card and "### search" in card


def test_the_built_in_backbone_is_an_ordinary_folder_too() -> None:
    prm = QwenLatentPRM(reader_folder())
    assert prm.latent_dim == prm.hidden_size == 128 and prm.shares


def test_the_shipped_prm_scores_the_built_in_reasoners_paths() -> None:
    task, reasoner = load_task("arithmetic,search"), Reasoner.from_pretrained("builtin", device="cpu")
    tree = reasoner.grow(task.questions("test", 1, 1), task)[0]
    scores = QwenLatentPRM.from_pretrained(prm_folder()).score_trees([tree])[0]
    assert scores.shape == (len(tree.paths),) and ((scores >= 0) & (scores <= 1)).all()


def test_a_lesson_allows_exactly_the_hopeful_moves() -> None:
    problem = SearchProblem(7, (("+", 3), ("*", 2), ("-", 5)), 15, 3)
    lesson = Lesson.of([problem], build_tokenizer(), 6)

    def allowed(step: int, value: int) -> list[int]:
        found = lesson.allowed(torch.tensor([[step]]), torch.tensor([[value]]))
        return found[0, 0].nonzero()[:, 0].tolist()

    hopeful = [v for v in problem.next_values(7) if any(problem.reaches([v, w, 15]) for w in problem.next_values(v))]
    assert allowed(0, 7) == sorted(hopeful)
    assert allowed(2, 20) == [15]
    assert allowed(2, 40) == [35, 43, 80]  # no way to 15: any move
    assert allowed(3, 15) == [15]  # through: the number stays


def test_a_thought_is_sound_until_its_first_bad_step() -> None:
    problem = SearchProblem(7, (("+", 3), ("*", 2), ("-", 5)), 15, 3)
    lesson = Lesson.of([problem], build_tokenizer(), 6)
    thoughts = torch.tensor([[[10, 20, 15, 15, 15, 15], [10, 21, 16, 16, 16, 16], [10, 13, 26, 26, 26, 15]]])
    # 10 → 21 is no move; 10 → 13 is one, but a hopeless one while 20 was open.
    assert judge(lesson, thoughts)[0].int().tolist() == [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]


def two_lessons() -> Lesson:
    """7 → 10 → 20 → 15 by three moves, and a story: 12, then 5 more, then half of it is given away."""
    story = ArithmeticProblem("Ann has 12 apples. On Monday she buys 4.", 12, (("+", 4), ("/", 2)))
    return Lesson.of([SearchProblem(7, (("+", 3), ("*", 2), ("-", 5)), 15, 3), story], build_tokenizer(), 6)


def test_what_is_truly_next_follows_the_thought_in_a_search_and_the_story_in_a_story() -> None:
    thoughts = torch.tensor([[[10, 20, 15, 15, 15, 15]], [[50, 8, 8, 8, 8, 8]]])
    found = truly_next(two_lessons(), thoughts)[:, 0]
    assert [found[0, t].nonzero()[:, 0].tolist() for t in (1, 2, 5)] == [[20], [15], [15]]
    assert [found[1, t].nonzero()[:, 0].tolist() for t in range(6)] == [[16], [8], [8], [8], [8], [8]]


def test_an_answer_is_right_up_to_its_first_bad_number() -> None:
    made_up = torch.tensor([[[10, 20, 15, 15, 15, 15], [10, 20, 25, 25, 25, 25]], [[16, 8] * 3, [16, 9] * 3]])
    draw = torch.Generator().manual_seed(0)
    answers, right, filled = write_answers(two_lessons(), made_up, made_up, draw)
    assert answers[..., :4].tolist() == [[[10, 20, 15, -1], [10, 20, 25, -1]], [[8, -1, -1, -1], [9, -1, -1, -1]]]
    assert filled.sum(2).tolist() == [[3, 3], [1, 1]]
    assert right[0, :, :3].int().tolist() == [[1, 1, 1], [1, 1, 0]] and right[1, :, 0].int().tolist() == [1, 0]


def test_a_deepened_model_begins_close_to_the_reasoner() -> None:
    reasoner = Qwen3ForCausalLM.from_pretrained(reasoner_folder(), dtype=torch.float32)
    reader, ids = deepen(reasoner, 2), torch.arange(12)[None]
    assert reader.config.num_hidden_layers == reasoner.config.num_hidden_layers + 2
    with torch.no_grad():
        before, after = reasoner(ids).logits.flatten(), reader(ids).logits.flatten()
    assert torch.corrcoef(torch.stack([before, after]))[0, 1] > 0.8


def test_every_problem_of_a_lesson_is_of_the_training_split() -> None:
    import random

    from latent_prm.tasks import split_of

    assert {split_of(problem.text) for problem in draw_problems(random.Random(0), 60)} == {"train"}
    assert draw_search(random.Random(0)) == draw_search(random.Random(0))


def test_the_recipe_makes_the_same_bits_twice_and_learns(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    digests = []
    try:
        for run in ("a", "b"):
            terms = (
                Term(imagined=3, own=2, questions=6, noise=0.5, learning_rate=0.02, warmup=2, fall=1.7, seed=1),
                Term(own=2, questions=6, paths=1, learning_rate=0.01, warmup=1, fall=1.5, seed=2),
            )
            train(Recipe(output_dir=str(tmp_path / run), terms=terms))
            digests.append(hashlib.sha256((tmp_path / run / "model.safetensors").read_bytes()).hexdigest())
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert digests[0] == digests[1]
    untrained = build_model(Recipe(), build_tokenizer()).state_dict()
    taught = AutoModelForCausalLM.from_pretrained(tmp_path / "a").state_dict()
    assert any(not torch.equal(untrained[name], taught[name]) for name in untrained)


@pytest.mark.slow
def test_the_demo_runs_and_says_what_is_true(tmp_path: Path) -> None:
    options = [
        "--output_dir",
        str(tmp_path / "demo"),
        "--train_questions",
        "60",
        "--test_questions",
        "30",
        "--num_epochs",
        "1",
    ]
    done = subprocess.run([sys.executable, "-m", "latent_prm.demo", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in ("noise-free path", "majority", "best by fresh PRM", "vote by shipped PRM", "oracle", "AUROC within"):
        assert line in done.stdout
    for picture in ("qwen_prm/loss_curve.png", "fresh_PRM/accuracy.png", "shipped_PRM/accuracy.png"):
        assert (tmp_path / "demo" / picture).read_bytes().startswith(b"\x89PNG")


def test_the_readmes_python_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", readme, re.S)[0]
    exec(compile(code, "README.md", "exec"), {})
    assert "Which numbers do you visit? →" in capsys.readouterr().out
