"use strict";
// One sample: its end at each NFE, how it differs from the reference, and where on the path the error arises.
function drawDetail() {
  const k = state.sample;
  byId("detail-title").textContent = `Sample ${k} at each NFE`;
  byId("detail-samples").replaceChildren(isCloud() ? detailTable(k) : detailTiles(k));
  drawDeviation(k);
}

function detailTiles(k) {
  const grid = element("div", { class: "rows" });
  grid.style.gridTemplateColumns = `max-content repeat(${budgets.length + 1}, max-content)`;
  grid.style.columnGap = "14px";
  grid.append(element("div", { class: "name" }), element("div", { class: "head", text: "reference" }));
  for (const nfe of budgets) grid.append(element("div", { class: "head", text: `${nfe} NFE` }));
  // One scale of the error map for a column, so that solvers are compared at one NFE.
  const scales = Object.fromEntries(budgets.map((nfe) => [nfe, Math.max(1e-12, ...gallerySolvers().map((s) => {
    const found = shownAt(s, nfe);
    return found && found.difference ? found.difference.scale[k] : 0;
  }))]));
  gallerySolvers().forEach((solver, index) => {
    grid.append(element("div", { class: "name", text: solver }));
    const first = element("div", { class: "cell" });
    if (gallery.reference && index === 0) first.append(tile(gallery.reference, k, true, `reference of sample ${k}`));
    grid.append(first);
    for (const nfe of budgets) {
      const found = shownAt(solver, nfe);
      const cell = element("div", { class: "cell" });
      if (found) {
        const pair = element("div", { class: "pair" });
        pair.append(tile(found.x, k, true, `sample ${k} of ${solver} at ${nfe} NFE`, gallery.reference));
        if (found.difference) {
          const map = canvas(...tileSize(true), `difference of sample ${k} of ${solver} at ${nfe} NFE`);
          paintDifference(map, found.difference, k, scales[nfe]);
          pair.append(map);
        }
        cell.append(pair);
        cell.append(element("small", { text: found.error ? `error ${digits(found.error[k])}` : "no paired error" }));
      }
      grid.append(cell);
    }
  });
  if (Object.values(scales).some((s) => s > 1e-12)) {
    grid.append(element("div", { class: "name" }), element("div"));
    for (const nfe of budgets) grid.append(element("div", { class: "head", text: `map: \u00b1${digits(scales[nfe], 2)}` }));
  }
  return grid;
}

function detailTable(k) {
  const table = element("table");
  const head = element("tr", {}, element("th", { text: "" }), ...budgets.map((n) => element("th", { text: `${n} NFE` })));
  const text = (encoded) => Array.from(row(encoded, k).slice(0, 4), (v) => digits(v)).join(", ");
  table.append(element("thead", {}, head));
  const body = element("tbody");
  if (gallery.reference)
    body.append(element("tr", {}, element("th", { text: "reference" }),
      element("td", { colspan: budgets.length, text: `x = ${text(gallery.reference)}` })));
  for (const solver of gallerySolvers()) {
    const cells = budgets.map((nfe) => {
      const found = shownAt(solver, nfe);
      const error = found && found.error ? `, error ${digits(found.error[k])}` : "";
      return element("td", { text: found ? `x = ${text(found.x)}${error}` : "" });
    });
    body.append(element("tr", {}, element("th", { text: solver }), ...cells));
  }
  table.append(body);
  return table;
}

function drawDeviation(k) {
  const traces = [];
  for (const solver of gallerySolvers()) {
    const found = shownAt(solver, nfeNow());
    if (!found || !found.deviation) continue;
    const { values } = tensor(found.deviation);
    const at = found.times.map((_, n) => values[n * gallery.count + k]);
    traces.push({
      x: found.times, y: at.map((v) => (v > 0 ? v : null)), name: solver, mode: "lines+markers", meta: solver,
      line: { color: colour(solver), dash: dash(solver), width: 2 }, marker: { size: 6 },
      hovertemplate: "%{meta}<br>t = %{x:.4f}<br>distance %{y:.3g}<extra></extra>",
    });
  }
  byId("deviation").classList.toggle("hidden", traces.length === 0);
  byId("deviation-note").textContent = traces.length
    ? "Where on the path the error arises: the distance of the state to the reference solution at the same time, from "
      + "the noise at t = 1 to the sample at t = 0."
    : "No solver with fixed steps and a paired error is shown, so there is no distance on the path.";
  if (traces.length === 0) return;
  const layout = chartLayout(`t (0 data, 1 noise), ${nfeNow()} NFE`, "distance to the reference (RMS)");
  layout.xaxis.autorange = "reversed";
  layout.yaxis.type = "log";
  Plotly.react("deviation", traces, layout, chartConfig);
}

function startDetail() {
  onChange(drawDetail);
  drawDetail();
}
