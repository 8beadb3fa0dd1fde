// A question's tree of latent paths as a picture: used by the live page and by the report.
//
// A tree is { paths: [path, …] }, parents before their children. A path has
//   parent    index of the path it carries on from, or null
//   latents   how many latents it is long
//   score     the PRM's value of the whole chain, 0..1, or null
//   steps     its values after each of its own latents, or nothing: then all are drawn with `score`
//   right     the share of its answers that are right, 0..1, or null where that is unknown, or nothing where nobody asks
//   answer    what was decoded, or null; counts: how many answers below it are right, and of how many
//   probability  that it ends right, where that is calibrated; noise_free, agent: as in a shard
// Everything said is set as text, never as HTML, and looks are attributes: no inline style, so any CSP bears it.
"use strict";

const LatentTree = (() => {
  const NS = "http://www.w3.org/2000/svg";
  const LANE = 28, TOP = 20, BOTTOM = 8, LEFT = 16, END = 9.5, DOT = 6;
  /** The colour of a value from 0 (orange) over grey to 1 (blue), as the page has them; null: none is known. */
  function colour(value) {
    if (value === null || value === undefined) return "var(--tree-unknown)";
    const far = Math.round(200 * Math.abs(Math.min(Math.max(value, 0), 1) - 0.5));
    return `color-mix(in oklab, var(--tree-${value < 0.5 ? "low" : "high"}) ${far}%, var(--tree-middle))`;
  }

  function make(parent, name, attributes = {}, text = null) {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    parent.append(node);
    return node;
  }

  const known = (value) => value !== null && value !== undefined;
  const two = (value) => (known(value) ? value.toFixed(2) : "–");
  const percent = (share) => `${Math.min(99, Math.max(1, Math.round(100 * share)))} %`; // nothing is certain
  const clipped = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  /** The paths from the root to path i, both included. */
  function chain(tree, i) {
    const found = [];
    for (let at = i; at !== null && at !== undefined; at = tree.paths[at].parent) found.unshift(at);
    return found;
  }

  /** The values after each latent of path i's whole chain, root to tip; of a path that has none its score, each time. */
  function values(tree, i) {
    return chain(tree, i).flatMap((k) => {
      const path = tree.paths[k];
      return path.steps && path.steps.length ? path.steps : Array(path.latents).fill(path.score);
    });
  }

  /** Where everything stands: the paths in the order of their lanes, each one's lane, first latent and depth. */
  function layout(tree, sorted) {
    const children = new Map(), lane = [], start = [], depth = [], order = [];
    tree.paths.forEach((path, i) => {
      const key = known(path.parent) ? path.parent : -1;
      if (!children.has(key)) children.set(key, []);
      children.get(key).push(i);
    });
    if (sorted) {
      const rank = (i) => [tree.paths[i].noise_free ? 0 : 1, -(tree.paths[i].score ?? 0)];
      for (const row of children.values()) row.sort((a, b) => rank(a)[0] - rank(b)[0] || rank(a)[1] - rank(b)[1]);
    }
    let lanes = 0, longest = 1;
    const waiting = (children.get(-1) || []).slice().reverse();
    while (waiting.length) { // parents before children, no recursion: a tree may be deep
      const i = waiting.pop(), parent = tree.paths[i].parent, own = children.get(i) || [];
      start[i] = known(parent) ? start[parent] + tree.paths[parent].latents : 0;
      depth[i] = known(parent) ? depth[parent] + 1 : 1;
      longest = Math.max(longest, start[i] + tree.paths[i].latents);
      order.push(i);
      if (!own.length) lane[i] = lanes++;
      for (const child of own.slice().reverse()) waiting.push(child);
    }
    for (const i of order.slice().reverse()) {
      const own = children.get(i);
      if (own) lane[i] = own.reduce((sum, child) => sum + lane[child], 0) / own.length;
    }
    return { children, lane, start, depth, order, lanes, longest };
  }

  /** A path in words, as a screen reader says it. */
  function say(tree, i, options = {}) {
    const path = tree.paths[i], said = [`Path ${i + 1}`];
    if (path.agent && path.agent !== "solo") said.push(path.agent);
    if (path.noise_free) said.push("noise-free");
    if (known(path.score)) said.push(`predicted ${two(path.score)}`);
    if (known(path.probability)) said.push(`right with probability ${percent(path.probability)}`);
    if (known(path.answer)) said.push(`answer ${path.answer === "" ? "none" : path.answer}`);
    if (known(path.right)) said.push(path.right === 1 ? "right" : path.right === 0 ? "wrong" : `${two(path.right)} right`);
    if (options.chosen?.includes(i)) said.push("chosen");
    return said.join(", ");
  }

  /** The same, with all that led there. */
  function describe(tree, i, options = {}) {
    const path = tree.paths[i], said = [say(tree, i, options)];
    if (path.counts && path.counts[1] > 1) said.push(`${path.counts[0]} of ${path.counts[1]} answers below are right`);
    if (known(path.score)) said.push(`after each ${options.unit || "latent"} ${values(tree, i).map(two).join(" ")}`);
    return said.join("; ") + ".";
  }

  function ring(group, x, y, right, radius) {
    if (right === undefined) return;
    const base = known(right) ? "ring wrong" : "ring unknown";
    if (right !== 1) make(group, "circle", { cx: x, cy: y, r: radius, class: base });
    if (known(right) && right > 0) {
      make(group, "circle", { cx: x, cy: y, r: radius, class: "ring right", pathLength: 1,
        "stroke-dasharray": right < 1 ? `${right} 1` : null, transform: `rotate(-90 ${x} ${y})` });
    }
  }

  /** Draw one path: its latents, its end, and what it answered. */
  function drawPath(svg, tree, i, place, options) {
    const { lane, start, x, y, right: edge, leaf } = place, path = tree.paths[i];
    const chosen = Boolean(options.chosen?.includes(i)), selected = options.selected === i;
    const looks = { selected, chosen, free: path.noise_free };
    const group = make(svg, "g", { class: ["path", ...Object.keys(looks).filter((name) => looks[name])].join(" "),
      "data-path": i, role: "treeitem", "aria-level": place.depth[i], "aria-selected": String(selected),
      tabindex: i === place.reached ? 0 : -1, "aria-label": say(tree, i, options) });
    const from = x(start[i]), to = x(start[i] + path.latents), at = y(lane[i]);
    const back = known(path.parent) ? y(lane[path.parent]) : place.root;
    make(group, "rect", { class: "hit", x: leaf ? 0 : from, y: at - LANE / 2, rx: 6, height: LANE,
      width: Math.max(leaf ? edge : to - from + END, 1) });
    const step = (to - from) / path.latents, bend = from + Math.min(step, 40) / 2;
    const value = (t) => (path.steps && path.steps.length > t ? path.steps[t] : path.score);
    const fresh = (name, t) => (start[i] + t > options.fresh ? `${name} new` : name);
    make(group, "path", { class: fresh("line", 1), stroke: colour(value(0)),
      d: `M${from},${back} C${bend},${back} ${bend},${at} ${from + step},${at}` });
    for (let t = 1; t < path.latents; t++) {
      make(group, "line", { class: fresh("line", t + 1), x1: from + t * step, y1: at, x2: from + (t + 1) * step, y2: at,
        stroke: colour(value(t)) });
    }
    for (let t = 0; t < path.latents - 1; t++) {
      if (step < 7) break;
      make(group, "circle", { class: fresh("latent", t + 1), cx: from + (t + 1) * step, cy: at, r: 3.5,
        fill: colour(value(t)) });
    }
    if (place.children.get(i)?.length === 1) { // it only goes on: no end, and no outcome of its own
      make(group, "circle", { class: "latent", cx: to, cy: at, r: 3.5, fill: colour(path.score) });
    } else {
      make(group, "circle", { class: fresh("end", path.latents), cx: to, cy: at, r: DOT, fill: colour(path.score) });
      ring(group, to, at, path.right, END);
    }
    if (leaf) drawAnswer(group, path, to + END + 8, at, edge, chosen);
    return group;
  }

  function drawAnswer(group, path, x, y, edge, chosen) {
    const mark = !known(path.right) ? "" : path.right === 1 ? "✓" : path.right === 0 ? "✗" : "≈";
    const letters = Math.floor((edge - x) / 7.6), before = (mark ? 2 : 0) + (chosen ? 2 : 0);
    const text = make(group, "text", { x, y, "dominant-baseline": "central", class: "said" });
    const span = (name, said) => make(text, "tspan", { class: name }, said);
    if (mark) span(path.right === 1 ? "mark right" : path.right === 0 ? "mark wrong" : "mark", `${mark} `);
    if (chosen) span("mark", "★ ");
    const said = path.answer === "" ? "no answer" : clipped(path.answer ?? "", Math.max(letters - before - 5, 3));
    if (known(path.answer)) span("answer", said);
    const sure = known(path.probability) ? percent(path.probability) : two(path.score);
    if (known(path.score)) span("value", `  ${sure}`);
    if (path.noise_free && letters > before + said.length + 16) span("value", "  noise-free");
  }

  /** How wide to draw: never so narrow that nothing is left beside the words. */
  function room(svg, options) {
    return Math.max(options.width || svg.clientWidth || svg.parentNode.clientWidth || 600, 240);
  }

  /** Number the latents along a line of the picture, as close as they can be read. */
  function axis(svg, x, y, longest, unit = "latent") {
    const every = Math.ceil((24 * longest) / (x(longest) - x(0))), looks = { class: "tick", y, "aria-hidden": "true" };
    for (let t = every; t <= longest; t += every) make(svg, "text", { ...looks, x: x(t), "text-anchor": "middle" }, t);
    make(svg, "text", { ...looks, x: x(longest) + END + 8 }, unit);
  }

  /**
   * Draw a tree into an <svg>, growing from left to right, a lane for each leaf; a width of 0 waits for its place.
   *
   * options: selected (index of a path), chosen (indices), sorted (siblings by value), label (what the tree is called),
   * onSelect(index) when a path is gone to, onPoint(index or null) when one is pointed at. While it grows: longest,
   * lanes (latents and leaves to leave room for), fresh (latents that were there before). unit: what a latent is called.
   */
  function draw(svg, tree, options = {}) {
    const width = room(svg, options);
    const found = layout(tree, options.sorted), side = Math.min(Math.max(width * 0.36, 136), 250);
    const longest = Math.max(found.longest, options.longest || 0), lanes = Math.max(found.lanes, options.lanes || 1);
    const height = TOP + lanes * LANE + BOTTOM, apart = (lanes * LANE) / (found.lanes || 1);
    const x = (latents) => LEFT + ((width - LEFT - side) * latents) / longest;
    const y = (lane) => TOP + (lane + 0.5) * apart;
    const focused = svg.contains(document.activeElement);
    svg.replaceChildren();
    for (const [key, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, width, height, role: "tree",
      "aria-label": options.label || "Tree of latent paths" })) svg.setAttribute(key, value);
    svg.classList.add("latent-tree");
    axis(svg, x, TOP - 8, longest, options.unit);
    const first = (found.children.get(-1) || []).map((i) => found.lane[i]);
    const root = y(first.reduce((a, b) => a + b, 0) / (first.length || 1));
    const reached = tree.paths[options.selected] ? options.selected : found.order[0], groups = [];
    for (const i of found.order) {
      const place = { ...found, x, y, root, reached, right: width, leaf: !found.children.has(i) };
      groups[i] = drawPath(svg, tree, i, place, options);
    }
    make(svg, "circle", { class: "root", cx: x(0), cy: root, r: 5, "aria-hidden": "true" });
    listen(svg, tree, groups, found, reached, options);
    if (focused) groups[reached]?.focus({ preventScroll: true });
    return found;
  }

  /** Whoever goes to a path, by hand or by keyboard, selects it. */
  function listen(svg, tree, groups, { order, children }, reached, options) {
    for (const i of order) {
      groups[i].onclick = () => groups[i].focus({ preventScroll: true });
      groups[i].onfocus = () => { if (i !== options.selected) options.onSelect?.(i); };
      groups[i].onpointerenter = () => options.onPoint?.(i);
    }
    svg.onpointerleave = () => options.onPoint?.(null);
    svg.onkeydown = (event) => {
      const at = order.indexOf(reached), last = order.length - 1;
      const next = { ArrowDown: () => order[Math.min(at + 1, last)], ArrowUp: () => order[Math.max(at - 1, 0)],
        Home: () => order[0], End: () => order[last], ArrowLeft: () => tree.paths[reached].parent,
        ArrowRight: () => (children.get(reached) || [])[0] }[event.key];
      if (!next) return;
      event.preventDefault();
      groups[next()]?.focus();
    };
  }

  /** Draw the value after each latent of every path's chain, the selected one's in front. */
  function drawValues(svg, tree, options = {}) {
    const width = room(svg, options), height = 190;
    const left = 34, bottom = 30, found = layout(tree, false);
    const leaves = found.order.filter((i) => !found.children.has(i));
    const picked = tree.paths[options.selected] ? options.selected : leaves[0];
    const x = (t) => left + ((width - left - 60) * t) / found.longest;
    const y = (value) => 10 + (height - bottom - 10) * (1 - value);
    svg.replaceChildren();
    const said = values(tree, picked).map(two).join(", ");
    for (const [key, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
      "aria-label": `Value after each latent of path ${picked + 1}: ${said}` })) svg.setAttribute(key, value);
    svg.classList.add("latent-tree");
    for (const tick of [0, 0.5, 1]) {
      make(svg, "line", { class: "grid", x1: left, x2: x(found.longest), y1: y(tick), y2: y(tick) });
      make(svg, "text", { class: "tick", x: left - 6, y: y(tick), "text-anchor": "end", "dominant-baseline": "central" },
        String(tick));
    }
    axis(svg, x, height - bottom + 16, found.longest);
    const line = (i, name) => {
      const points = values(tree, i).map((value, t) => [t + 1, value]).filter(([, value]) => known(value));
      if (points.length) {
        make(svg, "polyline", { class: name, points: points.map(([t, value]) => `${x(t)},${y(value)}`).join(" ") });
      }
      return points;
    };
    for (const i of leaves) if (i !== picked) line(i, `trail ${tree.paths[i].right === 1 ? "right" : "wrong"}`);
    for (const [t, value] of line(picked, "trail front")) {
      make(svg, "circle", { class: "latent", cx: x(t), cy: y(value), r: 5, fill: colour(value) });
    }
    const path = tree.paths[picked];
    if (known(path.score)) {
      const end = x(values(tree, picked).length) + 20;
      make(svg, "circle", { class: "end", cx: end, cy: y(path.score), r: DOT, fill: colour(path.score) });
      ring(svg, end, y(path.score), path.right, END);
      make(svg, "text", { class: "tick strong", x: end, y: Math.max(y(path.score) - 14, 9), "text-anchor": "middle" },
        two(path.score));
    }
  }

  /** Fill an element with the key to the colours (where there are values) and to the rings (where paths have ended). */
  function legend(element, valued = true, ended = true) {
    const svg = make(element, "svg", { viewBox: "0 0 136 22", width: 136, height: 22, role: "img",
      "aria-label": "Colour: predicted value, from orange, 0, over grey to blue, 1", class: "latent-tree" });
    if (valued) {
      for (let i = 0; i < 50; i++) make(svg, "rect", { x: 18 + 2 * i, y: 5, width: 2.2, height: 12, fill: colour(i / 49) });
      make(svg, "text", { x: 4, y: 12, "dominant-baseline": "central", class: "value" }, "0");
      make(svg, "text", { x: 124, y: 12, "dominant-baseline": "central", class: "value" }, "1");
    } else svg.remove();
    if (valued) element.append(Object.assign(document.createElement("span"), { textContent: "predicted value" }));
    for (const [right, said] of !ended ? [] : [[1, "ended right"], [0, "ended wrong"]]) {
      const group = document.createElement("span");
      element.append(group);
      const mark = make(group, "svg", { viewBox: "0 0 22 22", width: 22, height: 22, "aria-hidden": "true",
        class: "latent-tree" });
      ring(mark, 11, 11, right, END);
      group.append(said);
    }
  }

  return { draw, drawValues, legend, values, describe, percent };
})();
