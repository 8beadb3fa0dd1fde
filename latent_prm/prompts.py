"""What a reasoner is told: the words around a question, and the model's own chat template where it has one."""

from __future__ import annotations

from typing import Any

INSTRUCTION = {
    "text": r"Think it through silently, then give only the final answer, inside \boxed{}.",
    "arithmetic": r"Work it out silently, then give only the final number, inside \boxed{}.",
    "search": r"Every move may be used more than once. Find a way silently, then give only the numbers visited, "
    r"in order and without the start, inside \boxed{}.",
}
"""By task; a task that is not named here is put as ``text``."""


def solo_prompt(tokenizer: Any, question: str, task: str) -> str:
    """The text a solo agent reads before it thinks.

    A tokenizer without a chat template belongs to a model made for bare questions: it gets the question as it is.
    """
    if not tokenizer.chat_template:
        return question
    content = f"{question}\n\n{INSTRUCTION.get(task, INSTRUCTION['text'])}"
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
