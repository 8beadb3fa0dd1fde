// Asks a question, and draws the tree line by line as the server tells of it. No library, nothing from elsewhere.
"use strict";

const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const PACE = 380; // milliseconds that a step is looked at: a small model is done before anybody has seen it

let token = takeToken();
let about = null;
let running = null; // what stops the question that is being answered
let tree = null;
const shown = {}; // of each kind, the example that comes next

// --- the token -------------------------------------------------------------------------------------------------------

function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname); // so that it is not copied with the address
  }
  return given || sessionStorage.getItem("token") || "";
}

class Refused extends Error {}

async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${token}`, ...options.headers };
  let reply;
  try {
    reply = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached. Is latent-prm serve still running?");
  }
  if (reply.ok) return reply;
  if (reply.status === 401) {
    sessionStorage.removeItem("token");
    $("token-form").hidden = false;
    throw new Refused("This is not the server's token. Open the address that it printed, or type the token above.");
  }
  const said = await reply.json().catch(() => null);
  throw new Refused((said && said.error) || `The server answered ${reply.status} ${reply.statusText}.`);
}

// --- the form --------------------------------------------------------------------------------------------------------

async function begin() {
  complain("");
  try {
    about = await (await ask("/v1/about")).json();
  } catch (error) {
    return complain(error.message);
  }
  $("token-form").hidden = true;
  $("task").replaceChildren(...about.tasks.map((name) => new Option(name, name, false, name === about.task)));
  $("paths").placeholder = about.num_paths ?? ""; // what is left empty is as the server was started
  $("seed").placeholder = about.seed;
  const reasoner = about.model_path ? ` and the reasoner ${about.model_path}` : "";
  $("served").textContent = `latent-prm ${about.version} serves the PRM ${about.checkpoint}${reasoner}.`;
  $("snippet").textContent = [
    "from latent_prm.client import Client",
    `client = Client("${location.origin}", token)`,
    'print(client.solve("…").said)',
    "",
    `curl -N ${location.origin}/v1/solve -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \\`,
    `     -d '{"question": "…"}'`,
    "",
    `curl ${location.origin}/docs -H "Authorization: Bearer $TOKEN"`,
  ].join("\n");
  if (!about.model_path) {
    $("go").disabled = true;
    complain("This server scores paths only: it was started with --no-solve, and answers no questions.");
  }
  if (!$("question").value) example();
}

function example() {
  const kind = $("task").value;
  const questions = (about && about.examples[kind]) || [];
  $("example").hidden = questions.length === 0;
  if (questions.length) {
    shown[kind] = shown[kind] ?? 0;
    $("question").value = questions[shown[kind]++ % questions.length];
  }
  hint();
}

function hint() {
  const hints = {
    arithmetic: "A small word problem, as in the examples: this reasoner has learnt nothing else.",
    search: "Reach a number with given moves, written exactly as in the examples.",
    maths: "Any maths question, for a reasoner that knows some.",
    choice: "A question with its options below it, each as a line “A. …”.",
    text: "Any question.",
  };
  $("hint").textContent = hints[$("task").value] || "";
}

function say(words) { $("status").textContent = words; }

function complain(words) {
  $("error").textContent = words;
  if (!words) return;
  say("");
  document.body.dataset.state = "error";
  $("result").hidden = true;
}

// --- asking ----------------------------------------------------------------------------------------------------------

async function answer() {
  const stop = (running = new AbortController());
  complain("");
  document.body.dataset.state = "asking";
  $("go").textContent = "Stop";
  $("result").hidden = $("growth").hidden = true;
  $("votes").replaceChildren();
  $("remarks").replaceChildren();
  $("answer").textContent = "…";
  $("said").textContent = "";
  $("surety").style.setProperty("--p", 0);
  say("Reading the question …");
  const body = { question: $("question").value, task: $("task").value };
  for (const name of ["paths", "seed"]) {
    if ($(name).value !== "") body[name === "paths" ? "num_paths" : name] = Number($(name).value);
  }
  try {
    const headers = { "Content-Type": "application/json" };
    const reply = await ask("/v1/solve", { method: "POST", headers, body: JSON.stringify(body), signal: stop.signal });
    let last = null;
    for await (const event of lines(reply.body)) {
      tell((last = event));
      if (event.event === "step" && !still.matches) await pause(PACE, stop.signal);
    }
    if (!last || (last.event !== "chosen" && last.event !== "error")) throw new Refused("The server broke off.");
  } catch (error) {
    if (error.name === "AbortError") { say("Stopped."); document.body.dataset.state = "stopped"; }
    else complain(error instanceof Refused ? error.message : "The server broke off before it had an answer.");
  } finally {
    if (running === stop) { running = null; $("go").textContent = "Ask"; }
  }
}

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const parts = (rest + (value || "")).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part) yield JSON.parse(part);
    if (done) return;
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    }, { once: true });
  });
}

function tell(event) {
  if (event.event === "error") return complain(event.error);
  if (event.event === "started") {
    const expected = event.num_paths + 1; // and the noise-free one
    tree = { steps: event.steps, expected, paths: [], numbers: new Map(), step: 0, chosen: null, selected: null };
    $("growth").hidden = $("result").hidden = false;
    $("table").replaceChildren();
    document.body.dataset.state = "growing";
    return draw();
  }
  if (event.event === "chosen") return conclude(event);
  take(event);
  say(event.event === "answers" ? "Reading the answers …" : `Thinking: step ${event.step} of ${tree.steps} …`);
  draw();
}

function conclude(event) {
  tree.chosen = event;
  const known = event.answer !== "";
  $("answer").textContent = known ? event.answer : "?";
  $("said").textContent = event.said + (event.said.endsWith(".") ? "" : ".");
  $("surety").style.setProperty("--p", known ? event.probability ?? event.share : 0);
  $("votes").replaceChildren(...votes());
  $("remarks").replaceChildren(...event.remarks.map((words) => element("li", {}, words)));
  document.body.dataset.state = "done";
  say(`Done: ${leaves().length} paths in ${event.seconds.toFixed(2)} seconds.`);
  draw();
  fillTable();
}

function votes() {
  const found = new Map();
  for (const path of tree.paths) {
    if (!path.votes) continue;
    const value = path.answer, one = found.get(value) || { value, paths: 0, weight: 0 };
    one.paths += path.votes;
    one.weight += path.votes * path.score;
    found.set(value, one);
  }
  const all = [...found.values()].sort((a, b) => b.weight - a.weight);
  const total = all.reduce((sum, one) => sum + one.weight, 0) || 1;
  return all.slice(0, 8).map((one) => {
    const bar = element("i", {});
    bar.style.setProperty("--p", one.weight / total);
    const chosen = one.value === tree.chosen.answer ? " chosen" : "";
    return element("div", { class: `vote${chosen}`, role: "listitem" },
      element("b", {}, one.value || "no answer"),
      element("div", { class: "bar", "aria-hidden": "true" }, bar),
      element("span", {}, `${one.paths} path${one.paths === 1 ? "" : "s"}, ${LatentTree.percent(one.weight / total)}`));
  });
}

// --- the tree --------------------------------------------------------------------------------------------------------

// A path that alone carries on from another, of the same agent, makes that one longer: so the keyboard goes from leaf to
// leaf. What is a latent to LatentTree is a step here: all latents of an agent that has more than one to think.
function take(event) {
  tree.step = event.step;
  for (const { id, parent, agent, noise_free, score, answers, votes, probability } of event.paths) {
    if (!tree.numbers.has(id)) {
      const before = tree.numbers.get(parent), alone = event.paths.filter((one) => one.parent === parent).length === 1;
      const longer = alone && tree.paths[before]?.agent === agent;
      if (!longer) tree.paths.push({ parent: before ?? null, agent, noise_free, latents: 0, steps: [] });
      tree.numbers.set(id, longer ? before : tree.paths.length - 1);
      const path = tree.paths[tree.numbers.get(id)];
      path.latents = path.steps.push(score);
    }
    const answer = answers && (answers[0]?.value ?? "");
    Object.assign(tree.paths[tree.numbers.get(id)], { score, answer, votes, probability });
  }
}

function leaves() { return tree.paths.flatMap((path, i) => (path.answer === undefined ? [] : i)); }

function looks() {
  const { selected, steps: longest, expected: lanes } = tree, told = tree.chosen;
  const chosen = told ? leaves().filter((i) => tree.paths[i].votes && tree.paths[i].answer === told.answer) : [];
  return { selected, chosen, longest, lanes, unit: "step", fresh: told ? undefined : tree.step - 1,
    width: $("stage").clientWidth, label: `Tree of ${tree.paths.length} paths after ${tree.step} of ${longest} steps`,
    onPoint: detail, onSelect: (i) => { tree.selected = i; draw(); } };
}

function draw() {
  LatentTree.draw($("tree"), tree, looks());
  detail(null);
}

const RESTING = $("detail").textContent.replace(/\s+/g, " ");

function detail(pointed) {
  const i = pointed ?? tree.selected;
  $("detail").textContent = i === null ? RESTING : LatentTree.describe(tree, i, looks());
}

function fillTable() {
  const steps = Array.from({ length: tree.steps }, (_, k) => k);
  const names = ["Path", ...steps.map((k) => `Step ${k + 1}`), "Answer", "Probability"];
  const head = element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)));
  const rows = leaves().map((i) => {
    const path = tree.paths[i], values = LatentTree.values(tree, i);
    const sure = path.probability === undefined ? "" : LatentTree.percent(path.probability);
    const cells = [`${i + 1}${path.noise_free ? " noise-free" : ""}`, ...steps.map((k) => values[k]?.toFixed(2) ?? ""),
      path.answer, sure];
    return element("tr", {}, ...cells.map((text) => element("td", {}, text)));
  });
  $("table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

// --- small things ----------------------------------------------------------------------------------------------------

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else answer();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) $("ask").requestSubmit();
  }
});
$("example").addEventListener("click", example);
$("task").addEventListener("change", example);
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  begin();
});
LatentTree.legend($("legend"), true, false);
new ResizeObserver(() => tree && draw()).observe($("stage"));
begin();
