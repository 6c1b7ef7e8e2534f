// SPDX-License-Identifier: Apache-2.0
// Small charts of the last minutes: what guests do on each export, and what each job does.

import { $, bytes, count, el, nanoseconds, rate, setText, svg } from "./format.js";

const longest = 300; // seconds that are kept and shown; fewer where there is less
const shortest = 60;
const width = 300;
const height = 80;

const kinds = {
  export: [
    { title: "throughput", lines: [["rb", "read", "read"], ["wb", "written", "write"]], text: rate },
    { title: "requests", lines: [["r", "reads", "read"], ["w", "writes", "write"]], text: (n) => count(n) + "/s" },
    { title: "latency", lines: [["rt", "read", "read"], ["wt", "write", "write"]], text: nanoseconds, optional: true },
  ],
  job: [
    { title: "copying", lines: [["rate", "rate", "read"]], text: rate },
    { title: "left to do", lines: [["dirty", "dirty", "write"]], text: bytes },
    { title: "adds to a guest's write", lines: [["delay", "delay", "write"]], text: nanoseconds, optional: true },
  ],
};

export class Charts {
  constructor() {
    this.series = new Map(); // by "export ID" or "job ID"
    this.charts = new Map();
  }

  // start takes what the server kept.
  start(history) {
    this.series = new Map(Object.entries(history));
  }

  // add takes the points of one sample, and forgets what is gone.
  add(points) {
    if (!points) return;
    for (const name of this.series.keys()) if (!(name in points)) this.series.delete(name);
    for (const [name, p] of Object.entries(points)) {
      const list = this.series.get(name) ?? [];
      if (list.length === 0 || list.at(-1).t < p.t) list.push(p);
      while (list.length > 0 && list[0].t < p.t - longest * 1000) list.shift();
      this.series.set(name, list);
    }
    this.draw();
  }

  draw() {
    const wanted = new Set();
    for (const name of [...this.series.keys()].sort()) {
      const points = this.series.get(name);
      const cut = name.indexOf(" ");
      for (const kind of kinds[name.slice(0, cut)] ?? []) {
        if (kind.optional && !points.some((p) => kind.lines.some(([key]) => p[key] > 0))) continue;
        const key = name + "/" + kind.title;
        wanted.add(key);
        this.drawOne(key, name, kind, points);
      }
    }
    for (const [key, c] of this.charts) {
      if (wanted.has(key)) continue;
      c.box.remove();
      this.charts.delete(key);
    }
    const order = [...wanted].join();
    if (order !== this.order) {
      this.order = order;
      for (const key of wanted) $("charts").append(this.charts.get(key).box);
    }
    const none = $("charts").querySelector(".none");
    if (this.charts.size > 0) none?.remove();
    else if (!none) $("charts").append(el("p", { class: "none", text: "No exports and no jobs." }));
  }

  make(name, kind) {
    const c = { lines: [], areas: [], values: [] };
    c.top = el("span");
    for (const [, , colour] of kind.lines) {
      c.areas.push(svg("path", { class: "area " + colour }));
      c.lines.push(svg("path", { class: "line " + colour }));
      c.values.push(el("b"));
    }
    c.picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" },
      svg("path", { class: "axis", d: `M0 ${height}H${width}M0 0.5H${width}` }), ...c.areas, ...c.lines);
    c.box = el("article", { class: "chart" }, el("h3", {}, `${name}: ${kind.title}`, c.top), c.picture,
      el("p", { class: "values" }, ...kind.lines.map(([, label, colour], i) => el("span", {}, el("i", { class: colour }), label + " ", c.values[i]))));
    return c;
  }

  drawOne(key, name, kind, points) {
    let c = this.charts.get(key);
    if (!c) {
      c = this.make(name, kind);
      this.charts.set(key, c);
    }
    const end = points.at(-1).t;
    const most = Math.max(1, ...points.flatMap((p) => kind.lines.map(([k]) => p[k])));
    const span = Math.min(Math.max((end - points[0].t) / 1000, shortest), longest);
    setText(c.top, `up to ${kind.text(most)} in ${span < 120 ? Math.ceil(span / 10) * 10 + " s" : Math.ceil(span / 60) + " min"}`);
    const words = [];
    kind.lines.forEach(([k, label], i) => {
      const at = points.map((p) => [width - ((end - p.t) / 1000 / span) * width, height - (p[k] / most) * (height - 4)]);
      const way = at.map(([x, y], n) => (n ? "L" : "M") + x.toFixed(1) + " " + y.toFixed(1)).join("");
      c.lines[i].setAttribute("d", way);
      c.areas[i].setAttribute("d", `${way}L${width} ${height}L${at[0][0].toFixed(1)} ${height}Z`);
      const now = kind.text(points.at(-1)[k]);
      setText(c.values[i], now);
      words.push(`${label} ${now}`);
    });
    c.picture.setAttribute("aria-label", `${name}, ${kind.title} of the last minutes: now ${words.join(", ")}, at most ${kind.text(most)}`);
  }
}
