// SPDX-License-Identifier: Apache-2.0
// A card for each job: how far it is, what it waits for, and what can be done about it.

import { $, bytes, el, percent, rate, seconds, setText, nanoseconds } from "./format.js";

const cards = new Map();

// What a job in a state waits for.
function waits(j) {
  const paused = j.block?.paused;
  const io = j.block?.["io-status"];
  if (j.error) return ["bad", j.error];
  if (io === "nospace") return ["bad", "No space is left on the target. Make room there, then resume the job."];
  if (io === "failed") return ["bad", "An error stopped the job; the events say which one. Resume it to try again."];
  switch (j.status) {
    case "created": return ["", "It has not begun yet."];
    case "paused": return ["warn", "The operator has paused it. Guests go on; what they write is left to do."];
    case "standby": return ["warn", "It is in step and was paused by the operator."];
    case "ready": return j.block?.["actively-synced"] === false
      ? ["good", "Source and target are nearly in step. It waits to be completed: guests then go on on the target."]
      : ["good", "It is in step and stays so. It waits to be completed: guests then go on on the target."];
    case "waiting": return ["", "The work is done; it is about to end."];
    case "pending": return ["warn", "The work is done. It waits for job-finalize."];
    case "aborting": return ["bad", "It failed or was cancelled, and cleans up."];
    case "concluded": return ["", "It is over, and waits for job-dismiss."];
  }
  if (paused) return ["warn", "It is about to pause."];
  if (j["dirty-bytes"] > 0 && j["seconds-left"] === undefined && j.rate !== undefined) {
    return j.rate > 0 ? ["warn", "Guests write as fast as it copies: it does not come nearer to its end. Write-blocking mode or more speed helps."]
      : ["", "It is at work; how long it takes is not known yet."];
  }
  return ["", j.block?.speed > 0 ? `It copies what is left, at no more than ${rate(j.block.speed)}.` : "It copies what is left."];
}

function figures(j) {
  const list = [];
  const add = (name, value) => list.push([name, value]);
  if (j.rate !== undefined && !["paused", "standby", "concluded"].includes(j.status)) add("Rate", rate(j.rate));
  if (j.status === "running" || j.status === "ready") add("Time left", seconds(j["seconds-left"]));
  if (j["dirty-bytes"] !== undefined) add("Left to do", bytes(j["dirty-bytes"]));
  if (j["copied-bytes"] !== undefined) add("Copied", bytes(j["copied-bytes"]));
  if (j["offloaded-bytes"] > 0) add("By the kernel", bytes(j["offloaded-bytes"]));
  if (j["zeroed-bytes"] > 0) add("Zeroed", bytes(j["zeroed-bytes"]));
  if (j["skipped-bytes"] !== undefined) add("Zeroes skipped", bytes(j["skipped-bytes"]));
  if (j["guest-write-delay-ns"] > 0) add("Adds to writes", nanoseconds(j["guest-write-delay-ns"]));
  if (j["verified-bytes"] !== undefined) add("Verified", bytes(j["verified-bytes"]));
  if (j["differing-bytes"] !== undefined) add("Differing", bytes(j["differing-bytes"]));
  if (j.block?.speed > 0) add("Limit", rate(j.block.speed));
  return list;
}

const allowed = {
  pause: ["created", "running", "ready"],
  resume: ["paused", "standby"],
  speed: ["created", "running", "paused", "ready", "standby"],
  complete: ["ready"],
  cancel: ["created", "running", "paused", "ready", "standby", "waiting", "pending"],
};

function make(id, order) {
  const c = { buttons: {} };
  c.name = el("h3", { text: id });
  c.kind = el("span", { class: "kind" });
  c.status = el("span", { class: "badge" });
  c.way = el("p", { class: "way" });
  c.bar = el("progress", { "aria-label": `Progress of job ${id}` });
  c.done = el("p", { class: "way" });
  c.figures = el("dl", { class: "figures" });
  c.waits = el("p", { class: "waits" });
  for (const verb of Object.keys(allowed)) {
    const label = verb === "speed" ? "Speed…" : verb[0].toUpperCase() + verb.slice(1);
    c.buttons[verb] = el("button", { type: "button", class: verb === "cancel" ? "danger" : "", "aria-label": `${label} job ${id}`,
      "data-verb": verb, text: label, onclick: () => order(id, verb) });
  }
  c.tools = el("div", { class: "buttons", hidden: true }, ...Object.values(c.buttons));
  c.card = el("article", { class: "card", "data-job": id, "aria-label": `Job ${id}` },
    el("div", { class: "top" }, c.name, c.kind, c.status), c.way, c.bar, c.done, c.figures, c.waits, c.tools);
  return c;
}

export function showJobs(state, unlocked, order) {
  const list = $("job-list");
  const gone = new Set(cards.keys());
  for (const j of state.jobs ?? []) {
    gone.delete(j.id);
    let c = cards.get(j.id);
    if (!c) {
      c = make(j.id, order);
      cards.set(j.id, c);
      list.append(c.card);
    }
    const failed = j.status === "concluded" && j.error;
    setText(c.kind, j.type);
    setText(c.status, failed ? "failed" : j.status);
    c.status.className = "badge " + (failed ? "failed" : j.status);
    const uses = (state.edges ?? []).filter((e) => e.user === "job" && e.name === j.id);
    const below = uses.flatMap((u) => (state.edges ?? []).filter((e) => e.user === "node" && e.name === u["node-name"]));
    const source = below.find((e) => e.role === "backing")?.["node-name"];
    const target = below.find((e) => e.role === "target")?.["node-name"];
    setText(c.way, source && target ? `${source} → ${target}` : uses.map((u) => u["node-name"]).join(", "));
    const total = Math.max(j["total-progress"], 1);
    c.bar.max = total;
    c.bar.value = j["current-progress"];
    c.bar.className = j.status === "ready" || j.status === "standby" ? "ready" : "";
    setText(c.done, `${percent(j["current-progress"], total)} — ${bytes(j["current-progress"])} of ${bytes(j["total-progress"])}`);
    const facts = figures(j);
    const key = facts.map((f) => f[0]).join();
    if (c.key !== key) {
      c.key = key;
      c.values = facts.map(() => el("dd"));
      c.figures.replaceChildren(...facts.map((f, i) => el("div", {}, el("dt", { text: f[0] }), c.values[i])));
    }
    facts.forEach((f, i) => setText(c.values[i], f[1]));
    const [kind, text] = waits(j);
    c.waits.className = "waits " + kind;
    setText(c.waits, text);
    c.tools.hidden = !unlocked;
    for (const [verb, b] of Object.entries(c.buttons)) b.disabled = !allowed[verb].includes(j.status);
  }
  for (const id of gone) {
    cards.get(id).card.remove();
    cards.delete(id);
  }
  const none = list.querySelector(".none");
  if (cards.size > 0) none?.remove();
  else if (!none) list.append(el("p", { class: "none", text: "No jobs." }));
}
