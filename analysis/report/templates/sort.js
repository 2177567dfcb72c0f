"use strict";
// Tables sort by a click on a column's name, which is a button, so that keys do the same; aria-sort tells the rest.
// A table whose rows belong together (parts below their whole, cells over several columns) stays as it is.
(() => {
  const SECONDS = {ns: 1e-9, "µs": 1e-6, ms: 1e-3, s: 1, min: 60, h: 3600};
  const VALUE = /^(× )?([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([^\s\d…]+)?/;
  const key = cell => {
    const text = cell.textContent.trim();
    if (!text || text === "–") return null;
    const found = text.replaceAll("−", "-").replace(/,(?=\d{3})/g, "").match(VALUE);
    if (!found) return text;
    const factor = found[3] === "%" ? .01 : SECONDS[found[3]] ?? 1;
    return found[1] ? found[2] - 1 : found[2] * factor;  // a change: "× 3" is more than "+50 %"
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), "en", {numeric: true});
  const sort = (table, column, header) => {
    const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const rows = [...table.tBodies[0].rows].map(row => [key(row.cells[column]), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : direction * compare(a, b));
    table.tBodies[0].append(...rows.map(([, row]) => row));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  };
  for (const table of document.querySelectorAll("table")) {
    const rows = table.tBodies[0] ? [...table.tBodies[0].rows] : [];
    const alone = !table.querySelector("tr.sub, tr.total, [colspan]");
    if (rows.length < 3 || !alone || !table.tHead || table.tHead.rows.length !== 1) continue;
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, column, header));
      header.append(button);
    });
  }
})();
