// SPDX-License-Identifier: Apache-2.0

import { $, el, clock, setText } from "./format.js";
import { Stream } from "./stream.js";
import { DiskMap } from "./map.js";
import { Charts } from "./charts.js";
import { showGraph } from "./graph.js";
import { showJobs } from "./jobs.js";
import { addEvents, showExports } from "./tables.js";
import { lock, order, unlock, unlocked } from "./control.js";

let state = {};
const charts = new Charts();

const stream = new Stream({
  history: (h) => charts.start(h),
  state: (s) => {
    $("trouble").hidden = !s.trouble;
    setText($("trouble"), s.trouble ?? "");
    setText($("link"), (s.trouble ? "waiting since " : "live, ") + clock(s.time));
    if (s.trouble) return; // what was shown last stays
    state = s;
    charts.add(s.points);
    show();
  },
  log: addEvents,
  map: (m) => map.take(m),
}, (link) => {
  $("link").className = "link " + link;
  if (link === "lost") setText($("link"), "no connection to the daemon");
});

const map = new DiskMap((view) => stream.look(view));

function show() {
  showJobs(state, unlocked(), order);
  showExports(state);
  showGraph(state);
  showMap();
  $("readonly").hidden = state.control;
  $("unlock").hidden = !state.control;
  setText($("unlock"), unlocked() ? "Lock control" : "Unlock control");
}

// showMap keeps the list of jobs that have a map.
function showMap() {
  const jobs = (state.jobs ?? []).filter((j) => j.type === "mirror" || j.type === "commit").map((j) => j.id);
  const choice = $("map-job");
  const key = jobs.join("\n");
  if (choice.dataset.key !== key) {
    const before = choice.value;
    choice.dataset.key = key;
    choice.replaceChildren(...jobs.map((id) => el("option", { value: id, text: id })));
    if (jobs.includes(before)) choice.value = before;
  }
  $("map-section").hidden = jobs.length === 0;
  map.choose(jobs.length ? choice.value : null);
}

$("map-job").onchange = showMap;
$("unlock").onclick = () => {
  if (!unlocked()) return unlock(show);
  lock();
  show();
};

// Colours follow the system until the operator chooses.
const system = matchMedia("(prefers-color-scheme: dark)");
function theme(chosen) {
  if (chosen) document.documentElement.dataset.theme = chosen;
  const dark = (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  $("theme").setAttribute("aria-pressed", dark);
  map.draw();
  return dark;
}
$("theme").onclick = () => {
  const next = theme() ? "light" : "dark";
  localStorage.setItem("theme", next);
  theme(next);
};
system.addEventListener("change", () => theme());
theme(localStorage.getItem("theme"));

stream.look(null);
