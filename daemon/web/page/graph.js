// SPDX-License-Identifier: Apache-2.0
// The graph: exports and jobs on top, then filters and formats, files below.

import { $, bytes, svg, el } from "./format.js";

const boxWidth = 176;
const boxHeight = 46;
const across = 26;
const down = 52;

let drawn = "";

export function showGraph(state) {
  const key = JSON.stringify([state.nodes?.map((n) => [n["node-name"], n.drv, n.file, n.ro, n.image["virtual-size"]]), state.edges, state.jobs?.map((j) => [j.id, j.type])]);
  if (key === drawn) return;
  drawn = key;
  const boxes = new Map();
  const lines = [];
  const node = (name) => "node " + name;
  for (const n of state.nodes ?? []) {
    boxes.set(node(n["node-name"]), { kind: "node", name: n["node-name"], small: n.drv + (n.ro ? ", read-only" : ""),
      title: `${n["node-name"]}: ${n.drv}, ${bytes(n.image["virtual-size"])}` + (n.file ? `\n${n.file}` : ""), filter: /_top$|^throttle$|^blkdebug$/.test(n.drv) });
  }
  for (const e of state.edges ?? []) {
    const from = e.user === "node" ? node(e.name) : e.user + " " + e.name;
    if (!boxes.has(from)) {
      const job = state.jobs?.find((j) => e.user === "job" && j.id === e.name);
      boxes.set(from, { kind: e.user, name: e.name, small: job ? job.type + " job" : e.user, title: from });
    }
    if (boxes.has(node(e["node-name"]))) lines.push({ from, to: node(e["node-name"]), role: e.role });
  }
  place(boxes, lines);
  draw(boxes, lines);
}

// place gives every box a row, below all that use it, and an order in the row in which few lines cross.
function place(boxes, lines) {
  const users = new Map([...boxes.keys()].map((k) => [k, []]));
  const used = new Map([...boxes.keys()].map((k) => [k, []]));
  for (const l of lines) {
    users.get(l.to).push(l.from);
    used.get(l.from).push(l.to);
  }
  const row = (key, way = new Set()) => {
    const b = boxes.get(key);
    if (b.row !== undefined || way.has(key)) return b.row ?? 0;
    way.add(key);
    b.row = b.kind === "node" ? 1 : 0;
    for (const u of users.get(key)) b.row = Math.max(b.row, row(u, way) + 1);
    return b.row;
  };
  const rows = [];
  for (const key of boxes.keys()) (rows[row(key)] ??= []).push(key);
  for (let i = 0; i < rows.length; i++) rows[i] ??= [];
  const number = (keys) => keys.forEach((k, i) => (boxes.get(k).at = i - (keys.length - 1) / 2));
  rows.forEach(number);
  const middle = (key, others) => {
    const list = others.get(key).map((k) => boxes.get(k).at);
    return list.length ? list.reduce((a, b) => a + b, 0) / list.length : boxes.get(key).at;
  };
  for (let round = 0; round < 4; round++) {
    for (const keys of rows) number(keys.sort((a, b) => middle(a, users) - middle(b, users)));
    for (const keys of rows.toReversed()) number(keys.sort((a, b) => middle(a, used) - middle(b, used)));
  }
  const widest = Math.max(...rows.map((keys) => keys.length), 1);
  for (const keys of rows) {
    keys.forEach((k, i) => {
      const b = boxes.get(k);
      b.x = 12 + (i + (widest - keys.length) / 2) * (boxWidth + across);
      b.y = 12 + b.row * (boxHeight + down);
    });
  }
}

function draw(boxes, lines) {
  if (boxes.size === 0) {
    $("graph-box").replaceChildren(el("p", { class: "none", text: "No nodes." }));
    return;
  }
  let right = 0;
  let bottom = 0;
  for (const b of boxes.values()) {
    right = Math.max(right, b.x + boxWidth + 12);
    bottom = Math.max(bottom, b.y + boxHeight + 12);
  }
  const paper = svg("svg", { width: right, height: bottom, viewBox: `0 0 ${right} ${bottom}`, role: "img",
    "aria-label": lines.map((l) => `${l.from} uses ${l.to} as ${l.role}`).join("; ") });
  // Several lines of a box begin and end beside each other, in the order of what they lead to.
  const port = (key, line, side) => {
    const mine = lines.filter((l) => l[side] === key).sort((p, q) => boxes.get(p[side === "from" ? "to" : "from"]).x - boxes.get(q[side === "from" ? "to" : "from"]).x);
    return boxes.get(key).x + (boxWidth * (mine.indexOf(line) + 1)) / (mine.length + 1);
  };
  const labels = [];
  for (const l of lines) {
    const x1 = port(l.from, l, "from");
    const y1 = boxes.get(l.from).y + boxHeight;
    const x2 = port(l.to, l, "to");
    const y2 = boxes.get(l.to).y;
    const bend = Math.max((y2 - y1) / 2, 16);
    paper.append(svg("path", { class: l.role === "target" ? "edge target" : "edge", d: `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}` }));
    if (l.role !== "root") labels.push(svg("text", { class: "role", x: x1 + (x2 - x1) * 0.3, y: y1 + (y2 - y1) * 0.36 + 4, "text-anchor": "middle", text: l.role }));
  }
  for (const b of boxes.values()) {
    const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
    const g = svg("g", {}, svg("title", { text: b.title }),
      svg("rect", { class: `box ${b.kind}${b.filter ? " filter" : ""}`, x: b.x, y: b.y, width: boxWidth, height: boxHeight, rx: b.kind === "node" ? 8 : 22 }),
      svg("text", { x: b.x + boxWidth / 2, y: b.y + 20, "text-anchor": "middle", text: cut(b.name, 22) }),
      svg("text", { class: "small", x: b.x + boxWidth / 2, y: b.y + 36, "text-anchor": "middle", text: cut(b.small, 26) }));
    paper.append(g);
  }
  paper.append(...labels);
  $("graph-box").replaceChildren(paper);
}
