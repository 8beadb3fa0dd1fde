"""The server's page in a real browser: a question is typed, the tree grows, and nothing is asked of anybody else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import TOKEN, Running, serving

from latent_prm.api import PAGE, SHELL

QUESTION = "Ann has 12 apples. On Monday she buys 5. How many apples does Ann have?"
DONE = "body[data-state=done]"
DOTS = "#stage :is(.latent, .end)"
PICTURE = """svg => {
  const ends = [...svg.querySelectorAll(".end")].map(one => one.cx.baseVal.value);
  return [svg.getAttribute("viewBox"), Math.max(...ends)];
}"""
NEVER_MIND = r"favicon|the server responded with a status of (401|422)"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving() as found:
        yield found


@pytest.fixture
def page(browser: Any, running: Running) -> Iterator[Any]:
    """A fresh tab, which may talk to the server alone and must not complain."""
    context = browser.new_context(reduced_motion="reduce", viewport={"width": 900, "height": 800})
    context.set_default_timeout(15_000)
    found, complaints = context.new_page(), []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    found.on("request", lambda asked: None if asked.url.startswith(running.url) else complaints.append(asked.url))
    yield found
    context.close()
    assert [one for one in complaints if not re.search(NEVER_MIND, one)] == []


def opened(page: Any, running: Running, token: str = TOKEN) -> Any:
    page.goto(f"{running.url}/#token={token}")
    page.wait_for_selector("#task option", state="attached")
    return page


def test_the_shell_is_whole_and_names_no_other_server() -> None:
    for name, _ in SHELL.values():
        text = (PAGE / name).read_text("utf-8")
        found = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not found, name
    html = (PAGE / "index.html").read_text("utf-8")
    assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", html)  # the page's own rules would forbid it
    scripts = [(PAGE / name).read_text("utf-8") for name in re.findall(r'src="/page/([\w.]+js)"', html)]
    assert len(scripts) == 2 and not any("innerHTML" in script or "eval(" in script for script in scripts)
    assert not re.search(r"<input[^>]* value=", html)  # what nobody types is not sent: it is as the server was started
    wanted = set(re.findall(r'\$\("([\w-]+)"\)', scripts[1]))
    assert wanted <= set(re.findall(r'id="([\w-]+)"', html))
    assert {name for name, _ in SHELL.values()} <= {path.name for path in Path(PAGE).iterdir()}


@pytest.mark.slow
def test_a_question_is_asked_and_its_tree_grows(page: Any, running: Running) -> None:
    opened(page, running)
    assert "token" not in page.url
    assert page.input_value("#question")  # an example
    assert [page.get_attribute(f"#{name}", "placeholder") for name in ("paths", "seed")] == ["16", "42"]
    assert not page.input_value("#paths") and not page.input_value("#seed")  # nothing is sent of what nobody types
    page.fill("#question", QUESTION)
    page.fill("#paths", "5")
    page.keyboard.press("Tab")
    page.focus("#question")
    page.keyboard.press("Enter")
    page.wait_for_selector(DONE)
    said = running.client.solve(QUESTION, num_paths=5)
    assert page.inner_text("#answer") == said.answer
    assert page.inner_text("#said") == f"{said.said}."
    assert page.locator("#stage .path").count() == 6 and page.locator(DOTS).count() == 36
    chosen = page.locator("#stage .path.chosen")
    leaves = [path for path in said.events[-2]["paths"] if path["answers"][0]["value"] == said.answer and path["votes"]]
    assert chosen.count() == len(leaves)
    assert page.locator("#votes .vote.chosen b").inner_text() == said.answer
    page.click("#as-table summary")
    assert page.locator("#table tbody tr").count() == 6
    colours = page.eval_on_selector_all(DOTS, "all => new Set(all.map(one => getComputedStyle(one).fill)).size")
    assert colours > 5  # each by its value


@pytest.mark.slow
def test_the_tree_is_shown_step_by_step_and_can_be_stopped(browser: Any, running: Running) -> None:
    page = opened(browser.new_page(), running)
    page.click("#go")
    page.wait_for_selector('#status:has-text(" of 6")')
    seen = page.locator(DOTS).count()
    assert 17 <= seen < 17 * 6
    size, reach = page.eval_on_selector("#tree", PICTURE)
    assert page.inner_text("#go") == "Stop"
    page.click("#go")
    page.wait_for_selector("body[data-state=stopped]")
    assert page.inner_text("#go") == "Ask" and "Stopped" in page.inner_text("#status")
    page.click("#go")
    page.wait_for_selector(DONE)
    then = page.eval_on_selector("#tree", PICTURE)
    assert then[0] == size and then[1] > reach  # it has grown in the same frame
    page.close()


@pytest.mark.slow
def test_a_path_is_read_with_the_keyboard_and_by_its_name(page: Any, running: Running) -> None:
    opened(page, running).fill("#paths", "3")
    page.click("#go")
    page.wait_for_selector(DONE)
    page.locator("#stage .path[tabindex='0']").focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    assert page.inner_text("#detail").startswith("Path 3, predicted 0.")
    assert re.search(r"; after each step 0\.\d\d( [01]\.\d\d){5}\.$", page.inner_text("#detail"))
    assert page.locator("#stage .selected :is(.latent, .end)").count() == 6
    page.set_viewport_size({"width": 120, "height": 700})  # no room for a path beside its answer
    page.set_viewport_size({"width": 360, "height": 700})  # it is drawn anew, and the path is held
    page.wait_for_selector("#stage svg[viewBox^='0 0 3']")
    assert page.inner_text("#detail").startswith("Path 3, ")
    assert page.evaluate("document.activeElement.ariaLabel").startswith("Path 3, ")
    page.locator("#stage .said").nth(1).hover()
    assert page.inner_text("#detail").startswith("Path 2, ")  # only while it is pointed at
    page.mouse.move(0, 0)
    assert page.inner_text("#detail").startswith("Path 3, ")
    page.keyboard.press("Home")
    assert page.inner_text("#detail").startswith("Path 1, noise-free, ")
    assert page.locator("#stage .path.free").count() == 1
    assert page.locator("#stage .path[tabindex='0']").count() == 1
    names = page.locator("#stage .path").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert len(set(names)) == 4 and all("right with probability" in name for name in names)
    wide = page.evaluate("() => document.documentElement.scrollWidth")
    assert wide <= 360  # nothing sticks out of a phone


@pytest.mark.slow
def test_errors_are_said_in_words(page: Any, running: Running) -> None:
    page.goto(f"{running.url}/")
    page.wait_for_selector("#error:not(:empty)")
    assert "This is not the server's token" in page.inner_text("#error")
    page.fill("#token", TOKEN)
    page.click("#token-form button")
    page.wait_for_selector("#task option", state="attached")
    page.wait_for_selector("#token-form", state="hidden")
    page.select_option("#task", "search")
    assert page.input_value("#question").startswith("Start at ")
    page.fill("#question", "Why?")
    page.click("#go")
    page.wait_for_selector("body[data-state=error]")
    assert "not a search question" in page.inner_text("#error")
    page.click("#example")
    page.click("#go")
    page.wait_for_selector(DONE)
    assert page.inner_text("#error") == ""
    page.reload()  # the token is kept for this tab
    page.wait_for_selector("#task option", state="attached")
    assert page.inner_text("#error") == ""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_words_can_be_read_by_day_and_by_night(browser: Any, running: Running, scheme: str) -> None:
    page = opened(browser.new_page(color_scheme=scheme, reduced_motion="reduce"), running)
    page.click("#go")
    page.wait_for_selector(DONE)
    for selector in ("body", "#hint", "#go", "#said", ".vote span", ".path text", "summary"):
        ink, paper = page.eval_on_selector(selector, COLOURS)
        assert contrast(ink, paper) >= 4.5, (selector, ink, paper)
    page.close()


COLOURS = """one => {
  const style = getComputedStyle(one);
  let under = one;
  while (under && getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)") under = under.parentElement;
  const ink = one instanceof SVGElement ? style.fill : style.color;
  return [ink, under ? getComputedStyle(under).backgroundColor : "rgb(255, 255, 255)"];
}"""


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it, of two colours rgb(r, g, b)."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
