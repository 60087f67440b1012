"use strict";
(() => {
  const root = document.documentElement;
  const make = (name, text, kind) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };

  // Theme: the system's until the reader says otherwise.
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const name = () => { theme.textContent = dark() ? "Light theme" : "Dark theme"; };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  name();

  // Tables: headings become buttons that sort; long ones show their first rows and can be searched.
  const FIRST = 40;
  const value = (row, column) => {
    const cell = row.cells[column];
    const given = cell.dataset.v ?? cell.textContent.trim();
    return given === "" || Number.isNaN(Number(given)) ? given : Number(given);
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1; // what is missing comes last
    const numbers = typeof a === "number" && typeof b === "number";
    return numbers ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const headings = [...table.tHead.rows[0].cells];
    const rows = [...body.rows];
    let all = rows.length <= FIRST + 10;
    let wanted = "";
    const show = () => {
      let seen = 0;
      for (const row of body.rows) {
        const found = row.textContent.toLowerCase().includes(wanted);
        row.hidden = !found || (!all && seen >= FIRST);
        if (found) seen += 1;
      }
    };
    headings.forEach((heading, column) => {
      const button = make("button", heading.textContent);
      button.type = "button";
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") !== "ascending";
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const keyed = [...body.rows].map((row) => [value(row, column), row]);
        keyed.sort(([a], [b]) => (a === "" || b === "" || up ? compare(a, b) : compare(b, a)));
        body.append(...keyed.map(([, row]) => row));
        show();
      });
    });
    if (all) continue;
    const box = table.closest(".scroll");
    const find = make("p", undefined, "find");
    const label = make("label", "Find ");
    const input = make("input");
    input.type = "search";
    input.addEventListener("input", () => { wanted = input.value.trim().toLowerCase(); show(); });
    label.append(input);
    find.append(label);
    const more = make("button", `Show all ${rows.length.toLocaleString("en")} rows`, "more");
    more.type = "button";
    more.addEventListener("click", () => { all = true; more.hidden = true; show(); });
    box.before(find);
    box.after(more);
    show();
  }

  // The text: one stop for the tab key, arrow keys within it.
  const text = document.getElementById("text");
  if (!text) return;
  const tokens = JSON.parse(document.getElementById("tokens").textContent);
  const spans = [...text.querySelectorAll(".k")];
  const panel = document.getElementById("token");
  let current = -1;
  const percent = (p) => (p >= 0.0995 ? (100 * p).toFixed(0) : (100 * p).toPrecision(2)) + " %";
  const select = (number) => {
    if (current >= 0) spans[current].classList.remove("on");
    current = number;
    spans[number].classList.add("on");
    const [token, bits, rank, others] = tokens[number];
    const head = make("p");
    head.append(make("code", token));
    const cost = make("p");
    cost.append(make("span", bits.toFixed(2), "bits"), " bits");
    const place = make("p", `probability ${percent(2 ** -bits)}, rank ${rank.toLocaleString("en")}`, "soft");
    const list = make("ul");
    others.forEach(([other, p], index) => {
      const item = make("li", undefined, index + 1 === rank ? "own" : "");
      item.append(make("code", other), make("span", percent(p)));
      list.append(item);
    });
    panel.replaceChildren(head, cost, place, list);
  };
  for (const span of spans) span.removeAttribute("title");
  text.tabIndex = 0;
  text.addEventListener("pointerover", (event) => {
    const span = event.target.closest(".k");
    if (span) select(Number(span.dataset.i));
  });
  text.addEventListener("focus", () => { if (current < 0) select(0); });
  text.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 10, ArrowLeft: -1, ArrowUp: -10, Home: -spans.length, End: spans.length };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    select(Math.max(0, Math.min(spans.length - 1, current + steps[event.key])));
    spans[current].scrollIntoView({ block: "nearest" });
  });
})();
