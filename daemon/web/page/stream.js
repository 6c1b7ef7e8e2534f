// SPDX-License-Identifier: Apache-2.0
// One stream of server-sent events for all that the page shows. It is opened anew when the map shows another range.

export class Stream {
  constructor(handlers, onLink) {
    this.handlers = handlers;
    this.onLink = onLink;
    this.view = null;
    this.lastEvent = 0;
    this.known = false; // the history is there
    this.timer = null;
  }

  // look asks for another range of a map; null for none.
  look(view) {
    this.view = view;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), this.source ? 120 : 0);
  }

  open() {
    clearTimeout(this.timer);
    this.source?.close();
    const query = new URLSearchParams({ after: this.lastEvent });
    if (this.known) query.set("history", "no");
    for (const [name, value] of Object.entries(this.view ?? {})) query.set(name, value);
    const source = new EventSource("api/stream?" + query);
    this.source = source;
    source.onopen = () => this.onLink("live");
    source.onerror = () => {
      if (source !== this.source) return;
      this.onLink("lost");
      source.close(); // what it would ask for again is out of date
      this.known = false;
      this.timer = setTimeout(() => this.open(), 2000);
    };
    for (const name of ["history", "state", "log", "map"]) {
      source.addEventListener(name, (e) => {
        if (source !== this.source) return;
        const data = JSON.parse(e.data);
        if (name === "history") this.known = true;
        if (name === "log" && data.length > 0) this.lastEvent = data.at(-1).n;
        this.handlers[name](data);
      });
    }
  }
}
