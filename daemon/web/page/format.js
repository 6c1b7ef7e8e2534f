// SPDX-License-Identifier: Apache-2.0
// Numbers as people read them, and elements without innerHTML: what comes from the daemon is only ever text.

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

export function bytes(n) {
  if (n === undefined || n === null) return "–";
  let unit = 0;
  let value = Math.abs(n);
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return (n < 0 ? "−" : "") + value.toFixed(digits) + " " + units[unit];
}

export const rate = (n) => (n === undefined ? "–" : bytes(n) + "/s");

export function seconds(s) {
  if (s === undefined || s === null) return "–";
  if (s < 60) return Math.round(s) + " s";
  if (s < 3600) return Math.floor(s / 60) + " min " + Math.round(s % 60) + " s";
  if (s < 48 * 3600) return Math.floor(s / 3600) + " h " + Math.round((s % 3600) / 60) + " min";
  return Math.round(s / 86400) + " days";
}

export function nanoseconds(n) {
  if (n < 1000) return n + " ns";
  if (n < 1e6) return (n / 1e3).toFixed(n < 1e4 ? 1 : 0) + " µs";
  if (n < 1e9) return (n / 1e6).toFixed(n < 1e7 ? 1 : 0) + " ms";
  return (n / 1e9).toFixed(1) + " s";
}

export const count = (n) => (n >= 1e4 ? (n / 1e3).toFixed(n >= 1e5 ? 0 : 1) + " k" : String(Math.round(n)));

export function percent(part, all) {
  if (!(all > 0)) return "–";
  const p = (100 * part) / all;
  if (part > 0 && p < 0.1) return "<0.1 %";
  if (part < all && p > 99.9) return ">99.9 %";
  return p.toFixed(p > 0 && p < 10 ? 1 : 0) + " %";
}

export const clock = (ms) => new Date(ms).toLocaleTimeString(undefined, { hour12: false });

export const $ = (id) => document.getElementById(id);

// el makes an element: attributes, with class and text among them, and children.
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(e, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (name === "text") e.textContent = value;
    else if (name.startsWith("on")) e.addEventListener(name.slice(2), value);
    else e.setAttribute(name, value === true ? "" : value);
  }
  e.append(...children.filter((c) => c !== undefined && c !== null));
  return e;
}

// setText changes a text only if it is another one: screen readers and selections are left alone.
export function setText(e, text) {
  if (e.textContent !== text) e.textContent = text;
}
