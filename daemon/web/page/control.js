// SPDX-License-Identifier: Apache-2.0
// What an operator orders. The token lives in this page's memory only: a reload forgets it.

import { $ } from "./format.js";

let token = "";

export const unlocked = () => token !== "";

async function send(order, shown) {
  let answer;
  try {
    answer = await fetch("api/control", { method: "POST", credentials: "omit",
      headers: { "Content-Type": "application/json", Authorization: "Bearer " + shown }, body: JSON.stringify(order) });
  } catch {
    return "the daemon does not answer";
  }
  if (answer.ok) return "";
  try {
    return (await answer.json()).error;
  } catch {
    return `the daemon answered ${answer.status}`;
  }
}

// ask shows a dialog, and does what is asked until that succeeds or the operator goes back.
function ask({ title, text, name, type, value, yes, act }) {
  const dialog = $("ask");
  const input = $("ask-input");
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-label").hidden = !name;
  $("ask-name").textContent = name ?? "";
  input.type = type ?? "text";
  input.value = value ?? "";
  $("ask-yes").textContent = yes;
  $("ask-error").hidden = true;
  $("ask-no").onclick = () => dialog.close();
  dialog.onclose = () => (input.value = "");
  $("ask-yes").onclick = async (e) => {
    e.preventDefault();
    const wrong = await act(input.value);
    if (!wrong) return dialog.close();
    $("ask-error").textContent = wrong;
    $("ask-error").hidden = false;
  };
  dialog.showModal();
}

export function unlock(then) {
  ask({ title: "Unlock control", yes: "Unlock", name: "Token", type: "password",
    text: "The token stands in the file that --web-token names, or in the daemon's log.",
    act: async (shown) => {
      const wrong = await send({ job: "", verb: "check" }, shown.trim());
      if (!wrong) {
        token = shown.trim();
        then();
      }
      return wrong;
    } });
}

export function lock() {
  token = "";
}

const speeds = { k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 };

function parseSpeed(text) {
  const m = /^\s*(\d+(?:\.\d+)?)\s*([kmgt])?(?:i?b)?(?:\/s)?\s*$/i.exec(text);
  return m ? Math.round(m[1] * (m[2] ? speeds[m[2].toLowerCase()] : 1)) : NaN;
}

export function order(job, verb) {
  const act = () => send({ job, verb }, token);
  switch (verb) {
    case "complete":
      return ask({ title: `Complete ${job}?`, yes: "Complete", act,
        text: "All users of the source go on on the target. The source is no longer written to." });
    case "cancel":
      return ask({ title: `Cancel ${job}?`, yes: "Cancel the job", act, text: "The job ends as it is. Guests stay on the source." });
    case "speed":
      return ask({ title: `Limit ${job}`, yes: "Set", name: "Bytes per second, such as 50M; 0 for no limit", value: "0", text: "",
        act: (text) => {
          const speed = parseSpeed(text);
          return Number.isSafeInteger(speed) ? send({ job, verb, speed }, token) : "expects a number, which may end in K, M, G or T";
        } });
  }
  return ask({ title: `${verb === "pause" ? "Pause" : "Resume"} ${job}?`, yes: verb === "pause" ? "Pause" : "Resume", act,
    text: verb === "pause" ? "The copy stops for now. Guests go on." : "The copy goes on." });
}
