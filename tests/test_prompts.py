"""Prompts: what each kind of question is told, and what a pipeline file may say; the rest is refused by its key."""

from __future__ import annotations

import os
import string
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest

from latent_prm.prompts import (
    ANSWER_FORM,
    BUILT_IN,
    METHOD,
    SOLO,
    Agent,
    Pipeline,
    load_pipeline,
    render,
)
from latent_prm.tasks import Kind, Question
from latent_prm.yaml_files import SIZE_LIMIT

GOOD = """
name: pair
agents:
  - name: solver
    prompt: |
      {question}

      {method}.
    latent_steps: 0
    branches: 8
  - name: doubter
judger: "Now give {answer_form}."
"""


def asked(kind: Any = "text", text: str = "Is {method} a placeholder in $\\frac{1}{2}$?") -> Question:
    return Question("text-1", text, "", kind)


@pytest.fixture(scope="module")
def plain(tiny_lm: Path) -> Any:
    """A tokenizer without a chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_lm)


@pytest.fixture(scope="module")
def chat(tiny_lm: Path) -> Any:
    """A tokenizer with one that shows all it is told."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}{% if not enable_thinking %}<no-thinking>{% endif %}"
    )
    return tokenizer


# --- rendering ------------------------------------------------------------------------------------------------------


def test_a_solo_agent_is_told_how_to_answer_a_question_of_its_kind(chat: Any) -> None:
    told = {
        "text": r"Think it through silently, then give only the final answer, inside \boxed{}.",
        "maths": r"Work it out silently, then give only the final number, inside \boxed{}.",
        "search": r"Every move may be used more than once. Find a way silently, then give only the numbers visited, "
        r"in order and without the start, inside \boxed{}.",
        "choice": r"Weigh the options silently, then give only the letter of the right option, inside \boxed{}.",
    }
    for kind, words in told.items():
        expected = f"<user>{asked().text}\n\n{words}<assistant><no-thinking>"
        assert render(chat, SOLO, asked(kind)) == expected
        assert render(chat, SOLO, asked(kind), think=True) == expected.removesuffix("<no-thinking>")
    assert set(told) == set(METHOD) == set(ANSWER_FORM) == set(get_args(Kind))


def test_a_model_made_for_bare_questions_gets_them_bare_when_it_is_alone(plain: Any) -> None:
    assert render(plain, SOLO, asked()) == asked().text
    assert render(plain, "{question}\n{method}!", asked()) == f"{asked().text}\nThink it through!"


def test_braces_that_are_not_ours_stay_as_they_are(plain: Any) -> None:
    template = r"{question} \boxed{} {x} {{method}} {answer_form}"
    filled = rf"{asked().text} \boxed{{}} {{x}} {{Think it through}} the final answer, inside \boxed{{}}"
    assert render(plain, template, asked()) == filled


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("pipeline", BUILT_IN.values(), ids=BUILT_IN)
def test_every_built_in_prompt_renders_for_every_kind_of_question(pipeline: Pipeline, kind: Any, chat: Any) -> None:
    prompts = [*(agent.prompt for agent in pipeline.agents), *filter(None, [pipeline.judger])]
    rendered = [render(chat, prompt or "", asked(kind, "Why?")) for prompt in prompts]
    assert not any("{question}" in text or "{method}" in text or "{answer_form}" in text for text in rendered)
    assert all("Why?" in text for text in (rendered[0], rendered[-1]))  # who begins and who answers know the question
    assert rendered[-1].endswith(f"{ANSWER_FORM[kind]}.<assistant><no-thinking>")
    assert not any(ANSWER_FORM[kind] in text for text in rendered[:-1])  # nobody else is to answer


def test_later_agents_are_told_whose_thoughts_are_before_them() -> None:
    for name in ("sequential", "hierarchical"):
        pipeline = load_pipeline(name)
        later = [*(agent.prompt or "" for agent in pipeline.agents[1:]), pipeline.judger or ""]
        for i, prompt in enumerate(later):
            assert "latent form" in prompt
            assert all(agent.name in prompt for agent in pipeline.agents[: i + 1])


# --- pipelines ------------------------------------------------------------------------------------------------------


def test_the_built_in_pipelines_are_known_by_name() -> None:
    assert load_pipeline("solo") == Pipeline("solo", (Agent("solo", SOLO),), judger=None)
    names = {name: [agent.name for agent in load_pipeline(name).agents] for name in ("sequential", "hierarchical")}
    assert names["sequential"] == ["planner", "critic", "refiner"]
    assert names["hierarchical"] == ["mathematician", "scientist", "programmer"]


def test_a_file_says_agents_prompts_latent_steps_and_branches(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD)
    solver = Agent("solver", "{question}\n\n{method}.", latent_steps=0, branches=8)
    expected = Pipeline("pair", (solver, Agent("doubter")), judger="Now give {answer_form}.")
    assert load_pipeline(str(tmp_path / "mine.yaml")) == expected


def test_a_placeholder_with_spaces_in_its_braces_is_filled_in(tmp_path: Path) -> None:
    spaced = GOOD.replace("{question}", "{ question }").replace("{answer_form}", "{answer_form }")
    (tmp_path / "mine.yaml").write_text(GOOD)
    (tmp_path / "spaced.yaml").write_text(spaced)
    assert spaced != GOOD and load_pipeline(str(tmp_path / "spaced.yaml")) == load_pipeline(str(tmp_path / "mine.yaml"))


def test_a_file_without_a_name_or_judger_is_called_as_the_file_and_its_last_agent_answers(tmp_path: Path) -> None:
    (tmp_path / "alone.yml").write_bytes(b"\xef\xbb\xbfagents:\n  - {name: one, prompt: '{question} \xe2\x86\x92'}\n")
    assert load_pipeline(str(tmp_path / "alone.yml")) == Pipeline("alone", (Agent("one", "{question} →"),), None)


def test_the_example_in_the_rooms_own_words_is_a_pipeline(tmp_path: Path) -> None:
    from latent_prm import prompts

    example = (prompts.__doc__ or "").split("such as\n\n")[1].split("\n\n``{question}``")[0]
    (tmp_path / "example.yaml").write_text(example)
    pipeline = load_pipeline(str(tmp_path / "example.yaml"))
    assert [(agent.name, agent.latent_steps, agent.branches) for agent in pipeline.agents] == [
        ("solver", 10, 8),
        ("doubter", None, None),
    ]


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (("judger:", "juger:"), "unknown key 'juger' (did you mean judger?). Type name, agents, judger."),
        (("branches:", "branch:"), "agent 1: unknown key 'branch' (did you mean branches?)"),
        (("- name: doubter", "- prompt: And now?"), 'agent 2: name is missing. Type "name: …"'),
        (("- name: doubter", "- name: 7"), "agent 2: name is 7. Type some text (in quotes"),
        (("- name: doubter", "- doubter"), "agent 2: 'doubter' is not a list of keys and values. Type \"- name: …\""),
        (("doubter", "solver"), "two agents have the name 'solver'. Type a name of its own for each."),
        (("branches: 8", "branches: 0"), "agent 1 (solver): branches is 0. Type a whole number of at least 1"),
        (("branches: 8", "branches: yes"), "agent 1 (solver): branches is True. Type a whole number"),
        (("latent_steps: 0", "latent_steps: 2.5"), "agent 1 (solver): latent_steps is 2.5. Type a whole number"),
        (("latent_steps: 0", "latent_steps: -1"), "latent_steps is -1. Type a whole number of at least 0"),
        (("{question}\n", "The question\n"), "agent 'solver': prompt lacks {question}. Type it where"),
        (("{question}\n", "{Question}\n"), "agent 1 (solver): prompt has {Question}. Type {question}."),
        (("{answer_form}", "{answer_from}"), "judger has {answer_from}. Type {answer_form}."),
        (('"Now give {answer_form}."', '" "'), "judger is ' '. Type some text"),
        (("name: pair\n", "name: pair\nname: trio\n"), "'name' is there twice"),
        (("name: pair\n", "name: [pair\n"), "not readable as YAML in UTF-8"),
        ((GOOD, "name: pair\nagents: []"), 'agents is []. Type a list of agents, each with "- name: …".'),
        ((GOOD, "judger: Now!"), "agents is None. Type a list of agents"),
        ((GOOD, ""), 'None is not a list of keys and values. Type "agents:"'),
        ((GOOD, "agents: !!python/object/apply:os.getcwd []"), "not readable as YAML in UTF-8"),
        ((GOOD, "[" * 5000), "not readable as YAML in UTF-8"),
        ((GOOD, "agents: 2024-99-99"), "not readable as YAML in UTF-8"),
        ((GOOD, "name: " + "x" * SIZE_LIMIT), f"bytes are too many for a pipeline ({SIZE_LIMIT} at most)."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_in_a_file_is_named_with_what_to_type(change: tuple[str, str], refused: str, tmp_path: Path) -> None:
    assert change[0] in GOOD
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(ValueError) as error:
        load_pipeline(str(path))
    assert refused in str(error.value) and str(error.value).startswith(str(path))


def test_a_file_that_repeats_itself_without_end_is_refused_at_once(tmp_path: Path) -> None:
    tenfold = [f"&{b} [{', '.join(['*' + a] * 10)}]" for a, b in pairwise(string.ascii_lowercase)]
    (tmp_path / "bomb.yaml").write_text(f"agents:\n  - name: [&a [x], {', '.join(tenfold)}]")
    with pytest.raises(ValueError, match=r"agent 1: name is \[\['x'\], \[.{1,80}…\. Type some text"):
        load_pipeline(str(tmp_path / "bomb.yaml"))


def test_an_unknown_pipeline_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'seqential' \(did you mean sequential\?\)\. Type solo, sequential, hier"):
        load_pipeline("seqential")
    with pytest.raises(ValueError, match=r"No such pipeline file: nowhere\.yaml\. Type its path, or solo"):
        load_pipeline("nowhere.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")  # which would be waited for, for ever
    with pytest.raises(ValueError, match="No such pipeline file"):
        load_pipeline(str(tmp_path / "pipe.yaml"))


def test_a_later_agents_message_has_no_beginning_and_no_date_of_its_own(tiny_lm: Path) -> None:
    from transformers import AutoTokenizer

    template = (
        "<s>{% if messages[0].role != 'system' %}"
        "<system>Today is {{ date_string or strftime_now('%d %b %Y') }}{% endif %}"
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
        "{% endif %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.chat_template = template
    question = Question("text-1", "What is 3 ?", "3")
    first = render(tokenizer, "{question} Plan.", question)
    assert first == "<s><system>Today is 26 Jul 2024<user>What is 3 ? Plan.</user><assistant>"
    assert render(tokenizer, "Check {question}", question, later=True) == (
        "</assistant><user>Check What is 3 ?</user><assistant>"
    )
