// SPDX-License-Identifier: Apache-2.0
// The map of a disk. The server counts chunks in cells; here each cell is a square, filled from below by what its chunks are.

import { $, bytes, el, percent, setText } from "./format.js";

// The states of a chunk, in the order in which a square is filled.
const states = [
  ["copied", "copied, or nothing to do"],
  ["zero", "zero on both, skipped"],
  ["unscanned", "not looked at yet"],
  ["dirty-zero", "dirty, zero on the target"],
  ["dirty", "dirty"],
  ["in-flight", "in flight"],
];
const urgent = new Set(["dirty", "dirty-zero", "in-flight"]);
const smallest = 9; // pixels of a square and its gap
const largest = 44;
const maxCells = 4096;

export class DiskMap {
  constructor(onView) {
    this.onView = onView; // called with a range to ask for
    this.canvas = $("map-canvas");
    this.job = null;
    this.answer = null;
    this.offset = 0;
    this.length = null; // the whole disk
    this.legend = {};
    for (const [name, text] of states) {
      const value = el("b", { text: "–" });
      const swatch = el("i", { class: name });
      this.legend[name] = { value, swatch };
      $("map-legend").append(el("li", {}, swatch, el("span", { text }), value));
    }
    this.listen();
  }

  listen() {
    const c = this.canvas;
    $("map-in").onclick = () => this.zoom(0.5);
    $("map-out").onclick = () => this.zoom(2);
    $("map-all").onclick = () => this.show(0, null);
    $("map-left").onclick = () => this.move(-0.5);
    $("map-right").onclick = () => this.move(0.5);
    c.addEventListener("wheel", (e) => {
      if (!this.answer) return;
      e.preventDefault();
      this.zoom(e.deltaY < 0 ? 0.5 : 2, this.placeOf(e));
    }, { passive: false });
    c.addEventListener("keydown", (e) => {
      if (e.ctrlKey || e.altKey || e.metaKey || !this.answer) return;
      const size = this.answer.size;
      const done = {
        "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), "_": () => this.zoom(2),
        "0": () => this.show(0, null), ArrowLeft: () => this.move(-0.25), ArrowRight: () => this.move(0.25),
        PageUp: () => this.move(-1), PageDown: () => this.move(1),
        Home: () => this.length && this.show(0, this.length), End: () => this.length && this.show(size - this.length, this.length),
      }[e.key];
      if (done) {
        e.preventDefault();
        done();
      }
    });
    let drag = null;
    c.addEventListener("pointerdown", (e) => {
      drag = { at: this.placeOf(e), moved: false };
      c.setPointerCapture(e.pointerId);
    });
    c.addEventListener("pointermove", (e) => {
      if (drag && this.length && e.pointerType !== "touch") {
        const to = this.placeOf(e);
        if (Math.abs(to - drag.at) > this.answer["cell-size"]) this.show(this.offset + drag.at - to, this.length);
      }
      this.point(e);
    });
    c.addEventListener("pointerup", () => (drag = null));
    c.addEventListener("pointerleave", () => {
      this.at = null;
      setText($("map-cell"), " ");
    });
    new ResizeObserver(() => this.job && this.ask()).observe(c);
  }

  // choose draws the disk of a job; null for none.
  choose(job) {
    if (job === this.job) return;
    this.job = job;
    this.answer = null;
    this.show(0, null);
  }

  zoom(by, around) {
    const a = this.answer;
    if (!a) return;
    const length = this.length ?? a.size;
    const least = Math.min(a.size, 16 * a.granularity);
    const next = Math.max(length * by, least);
    if (next >= a.size) return this.show(0, null);
    const part = around === undefined ? 0.5 : (around - this.offset) / length;
    this.show(this.offset + part * (length - next), next);
  }

  move(by) {
    if (this.answer && this.length) this.show(this.offset + by * this.length, this.length);
  }

  show(offset, length) {
    const size = this.answer?.size ?? 0;
    this.length = length;
    this.offset = length ? Math.max(0, Math.min(offset, size - length)) : 0;
    if (length) {
      const chunk = this.answer.granularity;
      this.offset = Math.round(this.offset / chunk) * chunk;
      this.length = Math.max(Math.round(length / chunk), 1) * chunk;
    }
    this.ask();
  }

  ask() {
    if (!this.job) return this.onView(null);
    const { width, height } = this.canvas.getBoundingClientRect();
    let side = smallest;
    while (Math.floor(width / side) * Math.floor(height / side) > maxCells) side++;
    const cells = Math.max(16, Math.floor(width / side) * Math.floor(height / side));
    const view = { job: this.job, offset: this.offset, cells };
    if (this.length) view.length = this.length;
    this.onView(view);
    this.draw();
  }

  // take takes an answer of the server.
  take(answer) {
    if (answer.job !== this.job) return;
    setText($("map-cell"), answer.error ?? " ");
    if (!answer.map) return;
    this.answer = answer.map;
    this.draw();
  }

  // layout is how squares lie on the canvas.
  layout() {
    const { width, height } = this.canvas.getBoundingClientRect();
    const n = Math.max(this.answer.copied.length, 1);
    let side = largest;
    while (side > smallest && Math.floor(width / side) * Math.floor(height / side) < n) side--;
    const columns = Math.max(Math.floor(width / side), 1);
    // They need not be quite square: the canvas is filled.
    const wide = Math.min(width / columns, largest);
    return { width, height, wide, tall: Math.min(height / Math.ceil(n / columns), 1.5 * wide), columns, n };
  }

  draw() {
    const a = this.answer;
    if (!a) return;
    const { width, height, wide, tall, columns, n } = this.layout();
    const dots = window.devicePixelRatio || 1;
    const c = this.canvas;
    if (c.width !== Math.round(width * dots) || c.height !== Math.round(height * dots)) {
      c.width = Math.round(width * dots);
      c.height = Math.round(height * dots);
    }
    const paper = c.getContext("2d");
    paper.setTransform(dots, 0, 0, dots, 0, 0);
    paper.clearRect(0, 0, width, height);
    const gap = wide > 14 ? 2 : 1;
    const box = tall - gap;
    const totals = {};
    const colours = {};
    for (const [name] of states) {
      totals[name] = 0;
      colours[name] = getComputedStyle(this.legend[name].swatch).backgroundColor;
    }
    // State by state, so that the colour changes seldom.
    const filled = new Float32Array(n);
    const all = new Float64Array(n);
    for (const [name] of states) for (let i = 0; i < n; i++) all[i] += a[name][i] ?? 0;
    for (const [name] of states) {
      paper.fillStyle = colours[name];
      for (let i = 0; i < n; i++) {
        const chunks = a[name][i] ?? 0;
        if (chunks === 0) continue;
        totals[name] += chunks;
        let part = (chunks / all[i]) * box;
        if (urgent.has(name)) part = Math.max(part, Math.min(2.5, box / 3)); // a little of it is seen, too
        const x = (i % columns) * wide;
        const y = Math.floor(i / columns) * tall;
        paper.fillRect(x, y + Math.max(box - filled[i] - part, 0), wide - gap, part);
        filled[i] = Math.min(filled[i] + part, box);
      }
    }
    this.tell(totals);
    if (this.at) this.point(this.at);
  }

  // tell says in words what is drawn.
  tell(totals) {
    const a = this.answer;
    const chunks = Object.values(totals).reduce((x, y) => x + y, 0);
    const words = [];
    for (const [name, text] of states) {
      setText(this.legend[name].value, percent(totals[name], chunks));
      if (totals[name] > 0) words.push(`${text} ${percent(totals[name], chunks)}`);
    }
    const end = Math.min(a.offset + a["cell-size"] * a.copied.length, a.size);
    const whole = a.offset === 0 && end === a.size;
    setText($("map-range"), (whole ? `whole disk, ${bytes(a.size)}` : `${bytes(a.offset)} – ${bytes(end)} of ${bytes(a.size)}`) +
      `; a square is ${bytes(a["cell-size"])}` + (a["cell-size"] === a.granularity ? ", one chunk" : ""));
    this.canvas.setAttribute("aria-label", `Map of the disk of job ${this.job}, ${$("map-range").textContent}: ${words.join(", ")}`);
    this.canvas.dataset.cells = a.copied.length;
    this.canvas.dataset.cellSize = a["cell-size"];
    const bar = $("map-window").style;
    bar.left = (100 * a.offset) / a.size + "%";
    bar.width = (100 * (end - a.offset)) / a.size + "%";
    $("map-out").disabled = $("map-all").disabled = whole;
    $("map-left").disabled = a.offset === 0;
    $("map-right").disabled = end >= a.size;
    $("map-in").disabled = end - a.offset <= 16 * a.granularity;
  }

  // cellOf is the number of the square under the pointer.
  cellOf(e) {
    const frame = this.canvas.getBoundingClientRect();
    const { wide, tall, columns, n } = this.layout();
    const column = Math.min(Math.max(Math.floor((e.clientX - frame.left) / wide), 0), columns - 1);
    const row = Math.max(Math.floor((e.clientY - frame.top) / tall), 0);
    const i = row * columns + column;
    return i < n ? i : -1;
  }

  placeOf(e) {
    const i = this.cellOf(e);
    return i < 0 ? undefined : this.answer.offset + (i + 0.5) * this.answer["cell-size"];
  }

  // point says what the square under the pointer is.
  point(e) {
    if (!this.answer) return;
    this.at = { clientX: e.clientX, clientY: e.clientY };
    const i = this.cellOf(e);
    if (i < 0) return setText($("map-cell"), " ");
    const a = this.answer;
    const off = a.offset + i * a["cell-size"];
    const all = states.reduce((sum, [name]) => sum + (a[name][i] ?? 0), 0);
    const words = states.filter(([name]) => a[name][i] > 0).map(([name, text]) => `${text} ${percent(a[name][i], all)}`);
    setText($("map-cell"), `Offset ${off.toLocaleString("en")} (${bytes(off)}): ${words.join(", ")}`);
  }
}
