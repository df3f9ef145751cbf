"use strict";
// The table: sorted by any column, copied as CSV or LaTeX in the order shown.
function startTable() {
  const body = byId("results").tBodies[0];
  const heads = [...byId("results").tHead.rows[0].cells];
  const lines = [...body.rows].map((line, index) => ({ line, index }));
  let order = lines;

  const compare = (a, b) => {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (entry) => report.table.sortKeys[entry.index][column];
      const empty = (entry) => key(entry) === "";
      order = [...lines].sort((a, b) => {
        if (empty(a) !== empty(b)) return empty(a) ? 1 : -1; // empty cells last, whichever way
        return (down ? -1 : 1) * compare(key(a), key(b));
      });
      body.replaceChildren(...order.map((entry) => entry.line));
    });
  });

  byId("copy-csv").addEventListener("click", () =>
    copy([report.table.csvHead, ...order.map((entry) => report.table.csvRows[entry.index])].join(""), "CSV copied"));
  byId("copy-latex").addEventListener("click", () => {
    const { latexHead, latexRows, latexFoot } = report.table;
    copy([latexHead, ...order.map((entry) => latexRows[entry.index]), latexFoot].join("\n"), "LaTeX copied");
  });
  byId("copy-command").addEventListener("click", () => copy(byId("command").textContent, "Command copied"));
}

async function copy(text, message) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  byId("copied").textContent = message;
}
