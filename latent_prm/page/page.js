// Asks a question, and draws the tree line by line as the server tells of it. No library, nothing from elsewhere.
"use strict";

const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const PACE = 380; // milliseconds that a step is looked at: a small model is done before anybody has seen it
const SVG = "http://www.w3.org/2000/svg";

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
    tree = { steps: event.steps, expected: event.num_paths + 1, paths: new Map(), step: 0, chosen: null };
    $("growth").hidden = $("result").hidden = false;
    $("table").replaceChildren();
    document.body.dataset.state = "growing";
    detail(null);
    return draw();
  }
  if (event.event === "chosen") return conclude(event);
  tree.step = event.step;
  for (const path of event.paths) tree.paths.set(path.id, { step: event.step, ...tree.paths.get(path.id), ...path });
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
  for (const path of leaves()) {
    if (!path.votes || !path.answers.length) continue;
    const value = path.answers[0].value;
    const one = found.get(value) || { value, paths: 0, weight: 0 };
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
      element("span", {}, `${one.paths} path${one.paths === 1 ? "" : "s"}, ${percent(one.weight / total)}`));
  });
}

// --- the tree --------------------------------------------------------------------------------------------------------

function leaves() {
  const parents = new Set([...tree.paths.values()].map((path) => path.parent));
  const found = [...tree.paths.values()].filter((path) => !parents.has(path.id));
  return found.sort((a, b) => a.noise_free - b.noise_free || order(a, b));
}

function order(a, b) { // as the branches stand: by their chains
  const one = chain(a), other = chain(b);
  for (let i = 0; i < Math.min(one.length, other.length); i++) if (one[i] !== other[i]) return one[i] - other[i];
  return one.length - other.length;
}

function chain(path) {
  const ids = [];
  for (let at = path; at; at = at.parent === null ? null : tree.paths.get(at.parent)) ids.push(at.id);
  return ids.reverse();
}

function draw() {
  const width = Math.max(280, $("stage").clientWidth);
  const label = Math.min(180, Math.max(96, width * 0.24)), left = 22, top = 22;
  const ends = leaves(), row = Math.max(20, Math.min(28, 460 / tree.expected));
  const height = Math.max(tree.expected, ends.length) * row;
  const x = (step) => left + 14 + ((width - label - left - 24) * step) / Math.max(1, tree.steps);
  const y = new Map();
  ends.forEach((path, i) => y.set(path.id, top + (height * (i + 0.5)) / ends.length));
  for (const path of [...tree.paths.values()].reverse()) { // children stand after their parents
    if (path.parent === null) continue;
    const own = y.get(path.id), known = y.get(path.parent);
    y.set(path.parent, known === undefined ? own : known); // the first child's row, so that a path stays straight
  }
  const middle = top + height / 2;
  const svg = shape("svg", {
    viewBox: `0 0 ${width} ${top + height + 6}`, height: top + height + 6, role: "group",
    "aria-label": `Tree of ${ends.length} paths after ${tree.step} of ${tree.steps} steps`,
  });
  for (let at = 0; at <= tree.steps; at++) {
    svg.append(shape("text", { class: "axis", x: at ? x(at) : left, y: 11, "aria-hidden": "true" }, at || "step"));
  }
  const edges = shape("g", { "aria-hidden": "true" }), dots = shape("g", { "aria-hidden": "true" });
  for (const path of tree.paths.values()) {
    const fresh = path.step === tree.step && !tree.chosen ? " new" : "";
    const from = path.parent === null ? [left, middle] : [x(tree.paths.get(path.parent).step), y.get(path.parent)];
    const to = [x(path.step), y.get(path.id)], bend = (from[0] + to[0]) / 2;
    const tone = path.score === null ? "" : path.score >= 0.5 ? " up" : " down";
    const d = `M${from}C${bend},${from[1]} ${bend},${to[1]} ${to}`;
    const edge = shape("path", { class: `edge${tone}${path.noise_free ? " free" : ""}${fresh}`, d, "data-id": path.id });
    const size = 3 + 3 * (path.score ?? 0);
    const dot = shape("circle", { class: `dot${tone}${fresh}`, cx: to[0], cy: to[1], r: size, "data-id": path.id });
    for (const part of [edge, dot]) part.style.setProperty("--p", path.score ?? 0.5);
    edges.append(edge);
    dots.append(dot);
  }
  svg.append(edges, dots, shape("circle", { class: "trunk", cx: left, cy: middle, r: 10 }),
    shape("text", { class: "trunk-mark", x: left, y: middle + 4.5 }, "?"));
  ends.forEach((path, i) => svg.append(end(path, i, { x: x(path.step), y: y.get(path.id), width, row, label })));
  const held = [...$("stage").querySelectorAll(".path")].indexOf(document.activeElement);
  $("stage").replaceChildren(svg);
  if (held >= 0) step(held);
}

function step(number) { // the one path that Tab reaches
  const all = [...$("stage").querySelectorAll(".path")];
  const next = all[Math.max(0, Math.min(all.length - 1, number))];
  all.forEach((one) => one.setAttribute("tabindex", one === next ? 0 : -1));
  next.focus();
}

function end(path, i, at) {
  const given = path.answers && (path.answers.length ? path.answers[0].value || "no answer" : "no answer");
  const chosen = tree.chosen && path.votes > 0 && given === tree.chosen.answer;
  const sure = path.probability ?? path.score;
  const group = shape("g", {
    class: `path${chosen ? " chosen" : ""}`, tabindex: i === 0 ? 0 : -1, role: "img", "aria-label": described(path),
  });
  group.append(shape("rect", {
    class: "hit", x: 34, y: at.y - at.row / 2, width: at.width - 36, height: at.row, rx: 6,
  }));
  if (given) {
    const room = Math.floor((at.label - 56) / 7.5);
    const words = given.length > room ? `${given.slice(0, Math.max(1, room - 1))}…` : given;
    group.append(shape("text", { x: at.x + 12, y: at.y + 4.5 }, words,
      shape("tspan", { class: "why", dx: 7 }, sure === null ? "" : percent(sure))));
  }
  group.addEventListener("pointerenter", () => pick(path));
  group.addEventListener("pointerleave", () => pick(null));
  group.addEventListener("focus", () => pick(path));
  group.addEventListener("blur", () => pick(null));
  group.addEventListener("keydown", (event) => {
    const way = { ArrowDown: 1, ArrowUp: -1, Home: -1e6, End: 1e6 }[event.key];
    if (!way) return;
    event.preventDefault();
    step([...$("stage").querySelectorAll(".path")].indexOf(group) + way);
  });
  return group;
}

function described(path) {
  const values = chain(path).map((id) => tree.paths.get(id).score);
  const name = path.noise_free ? "The path without noise" : `Path ${leaves().indexOf(path) + 1}`;
  const trail = values.map((value) => (value === null ? "–" : value.toFixed(2))).join(" → ");
  if (!path.answers) return `${name}: ${trail}`;
  const given = path.answers.length ? path.answers[0].value || "nothing" : "nothing";
  const sure = path.probability === undefined ? "" : `, right with probability ${percent(path.probability)}`;
  return `${name} answers ${given}${sure}. Its score, step by step: ${trail}`;
}

const RESTING = $("detail").textContent.replace(/\s+/g, " ");

function detail(words) { $("detail").textContent = words ?? RESTING; }

function pick(path) {
  const svg = $("stage").querySelector("svg");
  const ids = new Set(path ? chain(path) : []);
  svg.classList.toggle("picked", path !== null);
  for (const part of svg.querySelectorAll("[data-id]")) part.classList.toggle("on", ids.has(Number(part.dataset.id)));
  detail(path && described(path));
}

function fillTable() {
  const ends = leaves(), steps = Math.max(...ends.map((path) => chain(path).length));
  const names = ["Path", ...Array.from({ length: steps }, (_, i) => `Step ${i + 1}`), "Answer", "Probability"];
  const head = element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)));
  const rows = ends.map((path, i) => {
    const values = chain(path).map((id) => tree.paths.get(id).score);
    const cells = Array.from({ length: steps }, (_, k) => (values[k] ?? null) === null ? "" : values[k].toFixed(2));
    const given = path.answers && path.answers.length ? path.answers[0].value : "";
    const sure = path.probability === undefined ? "" : percent(path.probability);
    const name = path.noise_free ? "without noise" : String(i + 1);
    return element("tr", {}, ...[name, ...cells, given, sure].map((text) => element("td", {}, text)));
  });
  $("table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

// --- small things ----------------------------------------------------------------------------------------------------

function percent(share) { return `${Math.min(99, Math.max(1, Math.round(100 * share)))} %`; } // nothing is certain

function element(name, attributes, ...children) {
  return built(document.createElement(name), attributes, children);
}

function shape(name, attributes, ...children) {
  return built(document.createElementNS(SVG, name), attributes, children);
}

function built(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
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
let resizing = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => tree && !$("growth").hidden && draw());
});
begin();
