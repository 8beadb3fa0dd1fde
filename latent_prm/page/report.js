// The report's page: charts in the page's colours, tabs, and the tree explorer. All that is said is set as text.
"use strict";

(() => {
  const DATA = JSON.parse(document.getElementById("everything").textContent);
  const $ = (name) => document.getElementById(name);
  document.documentElement.classList.add("js");

  // --- charts -------------------------------------------------------------------------------------------------------

  const looks = () => getComputedStyle(document.documentElement);

  /** A colour of the page by name, as "--blue" or "--blue/0.2"; anything else as it is. */
  function coloured(value, style) {
    if (Array.isArray(value)) return value.map((one) => coloured(one, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one, style)]));
    }
    if (typeof value !== "string" || !/^--[a-z]+(\/[\d.]+)?$/.test(value)) return value;
    const [name, opacity] = value.split("/"), hex = style.getPropertyValue(name).trim();
    if (!opacity) return hex;
    const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${parts.join(",")},${opacity})`;
  }

  function figure(number, width) {
    const style = looks(), { data, layout } = coloured(DATA.charts[number], style);
    const named = layout.showlegend ? data.filter((trace) => trace.showlegend !== false).length : 0;
    const rows = Math.ceil(named / Math.max(1, Math.floor((width - 60) / 165))); // of the legend, about
    const ink = style.getPropertyValue("--ink").trim(), grid = style.getPropertyValue("--edge").trim();
    const font = { family: "system-ui, sans-serif", size: 12.5, color: ink };
    const card = style.getPropertyValue("--card").trim(), muted = style.getPropertyValue("--muted").trim();
    const axis = (own) => ({ gridcolor: grid, linecolor: grid, zeroline: false, ticks: "", automargin: true,
      ...own, title: { standoff: 10, font: { size: 12.5 }, ...(own && own.title) } });
    const all = { font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: 340 + 22 * rows,
      margin: { l: 56, r: 14, t: 40, b: 48 + 22 * rows }, hovermode: "x", dragmode: false,
      hoverlabel: { bgcolor: card, bordercolor: grid, font },
      modebar: { bgcolor: card, color: muted, activecolor: ink }, // in the margin above; by itself it would be half black
      legend: { orientation: "h", x: 0, xref: "container", xanchor: "left", y: 0, yref: "container", yanchor: "bottom", font: { size: 12 } },
      ...layout, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis) };
    return { data, layout: all };
  }

  const drawn = new Set();
  function plot(element) {
    const { data, layout } = figure(Number(element.dataset.chart), element.clientWidth);
    drawn.add(element);
    return Plotly.react(element, data, layout, { responsive: true, displaylogo: false, displayModeBar: "hover",
      showSendToCloud: false, plotlyServerURL: "", // plotly 7 offers to upload a chart unless told otherwise
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  }

  function charts() {
    const elements = document.querySelectorAll(".plot");
    if (!elements.length || typeof Plotly === "undefined") return;
    const seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting && target.clientWidth && !drawn.has(target)) plot(target);
      }
    }, { rootMargin: "600px" });
    for (const element of elements) seen.observe(element);
  }

  const again = () => { for (const element of drawn) if (element.clientWidth) plot(element); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addEventListener("beforeprint", () => { // paper is white
    document.documentElement.dataset.print = "";
    for (const element of document.querySelectorAll(".plot")) if (element.clientWidth) plot(element);
  });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.print; again(); });

  // --- tabs ---------------------------------------------------------------------------------------------------------

  function tabs(group) {
    const buttons = [...group.querySelectorAll("[role=tab]")];
    const show = (picked) => {
      for (const button of buttons) {
        const on = button === picked;
        button.setAttribute("aria-selected", String(on));
        button.tabIndex = on ? 0 : -1;
        $(button.getAttribute("aria-controls")).hidden = !on;
      }
    };
    for (const [at, button] of buttons.entries()) {
      button.addEventListener("click", () => show(button));
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = buttons[(at + step + buttons.length) % buttons.length];
        event.preventDefault();
        show(next);
        next.focus();
      });
    }
    show(buttons[0]);
  }

  // --- the explorer -------------------------------------------------------------------------------------------------

  const known = (value) => value !== null && value !== undefined;
  const perCent = (value) => `${(100 * value).toFixed(0)} %`;

  /** A path as LatentTree takes it. */
  function opened(path) {
    return { parent: path.p ?? null, latents: path.n, score: path.s ?? null, steps: path.v || null,
      right: path.r ?? null, answer: path.y ?? null, noise_free: Boolean(path.f), counts: path.k || null,
      agent: DATA.trees.agents[path.a || 0] };
  }

  function node(name, said = "", kind = "") {
    const found = document.createElement(name);
    found.textContent = said;
    if (kind) found.className = kind;
    return found;
  }

  function explorer() {
    const all = DATA.trees.questions, valued = DATA.trees.valued;
    const state = { shown: [], question: null, path: null };
    const wrong = (own) => own && !own.right;
    const FILTERS = [
      ["all", "all questions", () => true],
      ["disagree", "PRM and majority disagree", (q) => q.choice && q.vote && q.choice.value !== q.vote.value],
      ["mistakes", "mistakes of the PRM", (q) => wrong(q.choice)],
      ["gained", "PRM right, majority wrong", (q) => q.choice && q.choice.right && wrong(q.vote)],
      ["lost", "PRM wrong, majority right", (q) => wrong(q.choice) && q.vote.right],
      ["majority", "mistakes of the majority", (q) => wrong(q.vote)],
      ["mixed", "right and wrong paths", (q) => q.mixed],
    ].filter(([name]) => valued || ["all", "majority", "mixed"].includes(name));
    const option = (value, said) => Object.assign(node("option", said), { value });
    for (const [name, said] of FILTERS) $("show").append(option(name, said));
    const tasks = [...new Set(all.map((q) => q.task))].sort();
    $("task").append(option("", "all tasks"), ...tasks.map((task) => option(task, task)));
    $("of-task").hidden = tasks.length < 2;
    LatentTree.legend($("legend"), valued);
    const lowered = all.map((q) => [q.text, q.gold, q.id, ...q.paths.map((p) => p.y || "")].join("\n").toLowerCase());

    function filter() {
      const wanted = FILTERS.find(([name]) => name === $("show").value)[2];
      const text = $("text").value.trim().toLowerCase(), task = $("task").value;
      state.shown = all.map((_, i) => i).filter((i) => wanted(all[i]) && (!task || all[i].task === task)
        && (!text || lowered[i].includes(text)));
      const items = state.shown.map(item);
      $("questions").replaceChildren(...items);
      const many = state.shown.length;
      $("count").textContent = `${many} of ${all.length} questions` + (many ? "" : ": none is like this.");
      if (many) pick(state.shown.includes(state.question) ? state.question : state.shown[0]);
      else { state.question = null; $("shown").hidden = true; $("questions").removeAttribute("aria-activedescendant"); }
    }

    function mark(list, said, own) {
      if (!own) return;
      const right = typeof own === "boolean" ? own : own.right;
      list.append(node("span", `${said} `), node("span", right ? "✓ right" : "✗ wrong", right ? "yes" : "no"),
        node("span", "  "));
    }

    function item(i) {
      const question = all[i], found = node("li"), marks = node("span", "", "marks");
      Object.assign(found, { id: `question-${i}` });
      found.setAttribute("role", "option");
      found.dataset.question = i;
      if (tasks.length > 1) marks.append(node("span", `${question.task}: `));
      mark(marks, "PRM", question.choice);
      mark(marks, "majority", question.vote);
      found.append(node("span", question.text, "ask"), marks);
      return found;
    }

    function fact(name, said, right = null) {
      const found = node("div"), value = node("dd", said);
      if (known(right)) value.append(" ", node("span", right ? "✓" : "✗", right ? "yes" : "no"));
      found.append(node("dt", name), value);
      return found;
    }

    function facts(question) {
      const found = [fact("Task", question.task), fact("Gold", question.gold)], { choice, vote } = question;
      if (choice) {
        const sure = known(choice.probability) ? `, right with ${perCent(choice.probability)}` : "";
        found.push(fact(`PRM (${DATA.trees.rule})`, `${choice.value || "no answer"}${sure}`, choice.right));
      }
      if (vote) found.push(fact("Majority", `${vote.value || "no answer"}, ${perCent(vote.share)}`, vote.right));
      if (known(question.free)) found.push(fact("Noise-free path", question.free ? "right" : "wrong", question.free));
      return found;
    }

    function pick(i, path = null) {
      const changed = state.question !== i;
      state.question = i;
      const question = all[i];
      if (changed || !state.tree) {
        state.tree = { paths: question.paths.map(opened) };
        state.path = path ?? (question.choice ? question.choice.path : 0);
        $("question").textContent = question.text;
        $("facts").replaceChildren(...facts(question));
        $("canvas").scrollTop = 0;
      }
      for (const li of $("questions").children) {
        const on = Number(li.dataset.question) === i;
        li.setAttribute("aria-selected", String(on));
        if (on) {
          $("questions").setAttribute("aria-activedescendant", li.id);
          const box = $("questions"), top = li.offsetTop - box.offsetTop;
          if (top < box.scrollTop) box.scrollTop = top;
          if (top + li.offsetHeight > box.scrollTop + box.clientHeight) {
            box.scrollTop = top + li.offsetHeight - box.clientHeight;
          }
        }
      }
      const at = state.shown.indexOf(i);
      $("where").textContent = `${at + 1} of ${state.shown.length}`;
      $("before").disabled = at <= 0;
      $("next").disabled = at >= state.shown.length - 1;
      $("shown").hidden = false;
      draw(changed);
    }

    function draw(whole) {
      const question = all[state.question], chosen = question.choice ? [question.choice.path] : [];
      const options = { selected: state.path, chosen, sorted: Boolean($("sorted").value), width: $("canvas").clientWidth,
        label: `Tree of ${question.paths.length} paths`, onSelect: (i) => { state.path = i; draw(false); } };
      LatentTree.draw($("tree"), state.tree, options);
      if (valued) LatentTree.drawValues($("values"), state.tree, { ...options, width: $("canvas").clientWidth });
      $("picked").textContent = LatentTree.describe(state.tree, state.path, { chosen });
      if (whole) table(chosen);
    }

    function table(chosen) {
      const head = ["path", "carries on from", "agent", "latents", ...(valued ? ["predicted"] : []), "true value",
        "answer", ...(valued ? ["after each latent"] : [])];
      const row = node("tr");
      row.append(...head.map((name) => Object.assign(node("th", name), { scope: "col" })));
      const body = state.tree.paths.map((path, i) => {
        const name = `${i + 1}${path.noise_free ? " noise-free" : ""}${chosen.includes(i) ? " ★ chosen" : ""}`;
        const share = path.counts && path.counts[1] > 1 ? ` (${path.counts[0]} of ${path.counts[1]})` : "";
        const outcome = !known(path.right) ? "unknown" : path.right === 1 ? "✓ right" : path.right === 0 ? "✗ wrong"
          : path.right.toFixed(2);
        const cells = [known(path.parent) ? String(path.parent + 1) : "question", path.agent, String(path.latents),
          ...(valued ? [path.score.toFixed(3)] : []), outcome + share, path.answer ?? "–",
          ...(valued ? [LatentTree.values(state.tree, i).map((v) => v.toFixed(2)).join(" ")] : [])];
        const found = node("tr");
        found.append(Object.assign(node("th", name), { scope: "row" }), ...cells.map((cell) => node("td", cell)));
        return found;
      });
      const top = node("thead"), rest = node("tbody");
      top.append(row);
      rest.append(...body);
      $("rows").replaceChildren(top, rest);
    }

    function move(step) {
      const at = state.shown.indexOf(state.question) + step;
      if (at >= 0 && at < state.shown.length) pick(state.shown[at]);
    }

    $("explorer").querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    for (const name of ["show", "task"]) $(name).addEventListener("change", filter);
    $("text").addEventListener("input", filter);
    $("sorted").addEventListener("change", () => { if (known(state.question)) draw(false); });
    $("before").addEventListener("click", () => move(-1));
    $("next").addEventListener("click", () => move(1));
    $("questions").addEventListener("click", (event) => {
      const li = event.target.closest("li");
      if (li) pick(Number(li.dataset.question));
    });
    $("questions").addEventListener("keydown", (event) => {
      const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
      const step = steps[event.key];
      if (!step || !state.shown.length) return;
      event.preventDefault();
      const at = Math.min(Math.max(state.shown.indexOf(state.question) + step, 0), state.shown.length - 1);
      pick(state.shown[at]);
    });
    new ResizeObserver(() => { if (known(state.question)) draw(false); }).observe($("canvas"));
    filter();
  }

  for (const group of document.querySelectorAll(".tabs")) tabs(group);
  charts();
  if (DATA.trees) explorer();
})();
