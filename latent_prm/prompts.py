r"""What agents are told: pipelines, built in or from a YAML file, and how a prompt is put to a reasoner.

This room hides the words around a question, the model's own chat template, and the checking of pipeline files such as

    name: pair
    agents:                          # they think one after the other, each on top of the thoughts so far
      - name: solver
        prompt: |
          {question}

          {method}: find the answer, but do not write it yet.
        latent_steps: 10             # left out: as --latent_steps says
        branches: 8                  # paths that begin here, under every path so far; left out: as --branches says
      - name: doubter                # without a prompt it simply keeps thinking
    judger: "Now give {answer_form}."  # writes the answer; left out: the last agent does, right after its latents

``{question}``, ``{method}`` and ``{answer_form}`` are filled in, the last two by the kind of the question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from latent_prm.tasks import Question
from latent_prm.yaml_files import keyed, load_yaml, meant, spell

METHOD = {
    "maths": "Work it out",
    "choice": "Weigh the options",
    "text": "Think it through",
    "search": "Every move may be used more than once. Find a way",
}
"""How a question is to be thought about, by its kind."""
ANSWER_FORM = {
    "maths": r"the final number, inside \boxed{}",
    "choice": r"the letter of the right option, inside \boxed{}",
    "text": r"the final answer, inside \boxed{}",
    "search": r"the numbers visited, in order and without the start, inside \boxed{}",
}
"""How the final answer is to be given, by the question's kind."""
PLACEHOLDERS = ("question", "method", "answer_form")

DATE = "26 Jul 2024"
"""For templates that tell the date: a tree must not depend on the day on which it is grown."""
THOUGHTS = "(thoughts)"
"""Stands for what was thought so far, where a later agent's turn is rendered."""


@dataclass(frozen=True)
class Agent:
    """One that thinks in latents on top of all thoughts so far; what is None is as the growth's own options say."""

    name: str
    prompt: str | None = None
    """A template; None: it reads nothing and simply keeps thinking."""
    latent_steps: int | None = None
    branches: int | None = None


@dataclass(frozen=True)
class Pipeline:
    """Agents in the order in which they think, and who writes the answer."""

    name: str
    agents: tuple[Agent, ...]
    judger: str | None
    """The prompt of the agent that writes the answer; None: the last agent does, right after its latents."""


# --- the built-in ones ----------------------------------------------------------------------------------------------

SOLO = "{question}\n\n{method} silently, then give only {answer_form}."

_BEFORE = "stand in your context in latent form, before this message"

PLANNER = """{question}

You are the planner, the first of a team. {method} silently: which steps lead to the answer? Write nothing yet."""
CRITIC = f"""You are the critic. The planner's thoughts on the question above {_BEFORE}.
Go through them silently: which step is wrong, missing or not needed? Write nothing yet."""
REFINER = f"""You are the refiner. The thoughts of the planner and the critic {_BEFORE}.
Keep what holds, mend what does not, and carry the plan out silently up to the answer. Write nothing yet."""
JUDGER = f"""You are the judger. Thoughts of a planner, a critic and a refiner on this question {_BEFORE}.

{{question}}

{{method}} with their help; where they are unclear, trust your own. Be brief, and end with {{answer_form}}."""

MATHEMATICIAN = """{question}

You are the mathematician of a team. {method} silently: by quantities, relations and proof. Write nothing yet."""
SCIENTIST = f"""You are the scientist. The mathematician's thoughts on the question above {_BEFORE}.
Think silently in your own way: which facts and laws decide it, and what is plausible? Write nothing yet."""
PROGRAMMER = f"""You are the programmer. The thoughts of the mathematician and the scientist {_BEFORE}.
Run the question through silently as a program would: each value kept, each case tried. Write nothing yet."""
SUMMARISER = f"""You sum up. Thoughts of a mathematician, a scientist and a programmer on this question {_BEFORE}.

{{question}}

{{method}} with their help, and settle what they differ on. Be brief, and end with {{answer_form}}."""

BUILT_IN = {
    "solo": Pipeline("solo", (Agent("solo", SOLO),), judger=None),
    "sequential": Pipeline(
        "sequential", (Agent("planner", PLANNER), Agent("critic", CRITIC), Agent("refiner", REFINER)), judger=JUDGER
    ),
    "hierarchical": Pipeline(
        "hierarchical",
        (Agent("mathematician", MATHEMATICIAN), Agent("scientist", SCIENTIST), Agent("programmer", PROGRAMMER)),
        judger=SUMMARISER,
    ),
}


# --- rendering ------------------------------------------------------------------------------------------------------


def render(tokenizer: Any, template: str, question: Question, think: bool = False, later: bool = False) -> str:
    """A prompt as the reasoner reads it: the template filled in, as a user's message in the tokenizer's chat template.

    A ``later`` message is what follows the thoughts so far: their turn's end and the next turn, without the template's
    beginning. A tokenizer without a chat template gets the plain text, and for ``SOLO`` the bare question: it belongs
    to a model made for bare questions.
    """
    if not tokenizer.chat_template:
        return question.text if template == SOLO else _fill(template, question)
    messages = [{"role": "user", "content": _fill(template, question)}]
    if later:
        messages = [{"role": "user", "content": "-"}, {"role": "assistant", "content": THOUGHTS}, *messages]
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=think, date_string=DATE
    )
    return text.rpartition(THOUGHTS)[2] if later else text


def _fill(template: str, question: Question) -> str:
    """In one pass: braces in the question's own text, or those of ``\\boxed{}``, stay as they are."""
    values = {
        "question": question.text,
        "method": METHOD[question.kind],
        "answer_form": ANSWER_FORM[question.kind],
    }
    return re.sub(rf"\{{({'|'.join(PLACEHOLDERS)})\}}", lambda found: values[found[1]], template)


# --- pipelines from files -------------------------------------------------------------------------------------------


def load_pipeline(name_or_file: str) -> Pipeline:
    """The pipeline of a built-in name (``solo``, ``sequential``, ``hierarchical``) or of a ``.yaml``/``.yml`` file.

    Raises ValueError for any other name and for a file that is not as it should be; it names the key.
    """
    if name_or_file in BUILT_IN:
        return BUILT_IN[name_or_file]
    path = Path(name_or_file).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        names = ", ".join(BUILT_IN)
        raise ValueError(
            f"Unknown pipeline {name_or_file!r}{meant(name_or_file, BUILT_IN)}. Type {names} or a .yaml file."
        )
    return _read(path)


def _read(path: Path) -> Pipeline:
    content = load_yaml(path, "pipeline", f"Type its path, or {', '.join(BUILT_IN)}.")
    top = keyed(content, ("name", "agents", "judger"), f"{path}", 'Type "agents:" and a list of them below.')
    listed = top.get("agents")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f'{path}: agents is {spell(listed)}. Type a list of agents, each with "- name: …".')
    agents = tuple(_agent(entry, f"{path}: agent {number}") for number, entry in enumerate(listed, 1))
    names = [agent.name for agent in agents]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path}: two agents have the name {double!r}. Type a name of its own for each.")
    if "{question}" not in (agents[0].prompt or ""):
        raise ValueError(
            f"{path}: agent {agents[0].name!r}: prompt lacks {{question}}. Type it where the first agent is to read it."
        )
    name = _text(top.get("name", path.stem), f"{path}: name")
    judger = top.get("judger")
    return Pipeline(name, agents, None if judger is None else _template(judger, f"{path}: judger"))


def _agent(entry: Any, where: str) -> Agent:
    keys = keyed(entry, ("name", "prompt", "latent_steps", "branches"), where, 'Type "- name: …" for each agent.')
    if "name" not in keys:
        raise ValueError(f'{where}: name is missing. Type "name: …": it is how reports call the agent.')
    name = _text(keys["name"], f"{where}: name")
    where = f"{where} ({name})"
    prompt = keys.get("prompt")
    return Agent(
        name=name,
        prompt=None if prompt is None else _template(prompt, f"{where}: prompt"),
        latent_steps=_whole(keys.get("latent_steps"), 0, f"{where}: latent_steps"),
        branches=_whole(keys.get("branches"), 1, f"{where}: branches"),
    )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} is {spell(value)}. Type some text (in quotes, if it looks like a number).")
    return value.strip()


def _template(value: Any, where: str) -> str:
    template = re.sub(rf"\{{\s*({'|'.join(PLACEHOLDERS)})\s*\}}", r"{\1}", _text(value, where))
    for word in re.findall(r"\{(\w+)\}", template):  # what resembles none of ours may be a formula's own braces
        if word not in PLACEHOLDERS and (close := get_close_matches(word.lower(), PLACEHOLDERS, 1, 0.8)):
            raise ValueError(f"{where} has {{{word}}}. Type {{{close[0]}}}.")
    return template


def _whole(value: Any, least: int, where: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise ValueError(f"{where} is {spell(value)}. Type a whole number of at least {least}, or leave the key out.")
    return value
