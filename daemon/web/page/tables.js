// SPDX-License-Identifier: Apache-2.0
// Exports, and the log of events.

import { $, bytes, clock, count, el } from "./format.js";

const kept = 500;

export function showExports(state) {
  const rows = (state.exports ?? []).map((e) => {
    const top = state.edges?.find((x) => x.user === "export" && x.name === e.id)?.["node-name"];
    const t = state.totals?.[top];
    const clients = e.clients ?? [];
    const remote = clients.filter((c) => c);
    const who = clients.length === 0 ? "none" : `${clients.length}` + (remote.length ? `: ${remote.join(", ")}` : " on the local socket");
    return [e.id + (e["shutting-down"] ? " (ending)" : ""), e["node-name"], who,
      t ? `${bytes(t.rd_bytes)} in ${count(t.rd_operations)}` : "–", t ? `${bytes(t.wr_bytes)} in ${count(t.wr_operations)}` : "–",
      t ? String(t.failed_rd_operations + t.failed_wr_operations) : "–"];
  });
  if (rows.length === 0) rows.push(["No exports.", "", "", "", "", ""]);
  const list = $("export-list");
  const key = JSON.stringify(rows);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...rows.map((cells) => el("tr", {}, ...cells.map((text) => el("td", { text })))));
}

const bad = /ERROR|CORRUPT|CANCELLED|DIFFERENCE/;
const good = /READY|COMPLETED|VERIFIED/;

export function addEvents(events) {
  const list = $("event-list");
  for (const e of events) {
    const words = Object.entries(e.data).map(([k, v]) => `${k} ${typeof v === "object" ? JSON.stringify(v) : v}`).join(", ");
    const failed = bad.test(e.name) || "error" in e.data;
    list.prepend(el("li", { "data-name": e.name }, el("time", { datetime: new Date(e.t).toISOString(), text: clock(e.t) }),
      el("b", { text: e.name, class: failed ? "bad" : good.test(e.name) ? "good" : "" }), el("span", { text: words })));
    if (e.lost) list.prepend(el("li", {}, el("time"), el("b", { text: `${e.lost} events were lost` }), el("span")));
  }
  while (list.children.length > kept) list.lastChild.remove();
}
