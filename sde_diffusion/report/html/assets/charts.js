"use strict";
// Curves, most of them against NFE, and the time grids, drawn with plotly.js; solvers are switched by the legend of the page.
const chartConfig = { displayModeBar: false, responsive: true };

function chartLayout(xTitle, yTitle) {
  const axis = (title) => ({
    title: { text: title, standoff: 8 }, gridcolor: css("--line"), linecolor: css("--line"), zerolinecolor: css("--line"),
    automargin: true, exponentformat: "power",
  });
  return {
    margin: { l: 56, r: 12, t: 12, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--text"), size: 13, family: "inherit" }, showlegend: false, hovermode: "closest",
    hoverlabel: { bgcolor: css("--raised"), bordercolor: css("--line"), font: { color: css("--text") } },
    xaxis: axis(xTitle), yaxis: axis(yTitle),
  };
}

function drawCharts() {
  report.charts.forEach((chart, index) => {
    const logY = byId("log-y").checked && chart.curves.every((c) => c.y.every((v) => v === null || v > 0));
    const traces = chart.curves.filter((c) => visible(c.name)).map((c) => ({
      x: c.x, y: c.y, name: c.name, meta: c.name, mode: "lines+markers",
      line: { color: colour(c.name), dash: dash(c.name), width: 2 }, marker: { size: 7 },
      customdata: c.low ? c.x.map((_, k) => `<br>${digits(c.low[k])} to ${digits(c.high[k])}`) : c.x.map(() => ""),
      hovertemplate: `%{meta}<br>%{x:.4g} ${chart.x}<br>%{y:.4g}%{customdata}<extra></extra>`,
      error_y: c.low ? {
        type: "data", symmetric: false, thickness: 1.2, width: 4,
        array: c.high.map((v, k) => (v === null ? 0 : v - c.y[k])),
        arrayminus: c.low.map((v, k) => (v === null ? 0 : c.y[k] - (logY ? Math.max(v, c.y[k] / 10) : v))),
      } : { visible: false },
    }));
    const layout = chartLayout(chart.x, chart.y);
    const ticks = [...new Set(chart.curves.flatMap((c) => c.x))].sort((a, b) => a - b);
    layout.xaxis.type = byId("log-x").checked ? "log" : "linear";
    if (ticks.every(Number.isInteger)) Object.assign(layout.xaxis, { tickvals: ticks, ticktext: ticks.map(String) });
    layout.yaxis.type = logY ? "log" : "linear";
    if (chart.level) {
      layout.shapes = [{
        type: "line", xref: "paper", x0: 0, x1: 1, y0: chart.level[1], y1: chart.level[1],
        line: { color: css("--soft"), dash: "dot", width: 1.5 },
        label: { text: chart.level[0], textposition: "start", font: { size: 11, color: css("--soft") } },
      }];
    }
    Plotly.react(`chart-${index}`, traces, layout, chartConfig);
  });
}

function drawGrids() {
  const nfe = Number(byId("grid-nfe").value);
  const snr = byId("grid-axis").value === "snr";
  const grids = report.grids.filter((g) => g.nfe === nfe && visible(g.solver));
  const traces = grids.map((g) => ({
    x: snr ? g.half_log_snr : g.times, y: g.times.map(() => g.solver), mode: "lines+markers", meta: g.solver,
    marker: { size: 11, symbol: "line-ns-open", line: { width: 2, color: colour(g.solver) } },
    line: { color: colour(g.solver), width: 1 }, customdata: g.times,
    hovertemplate: "%{meta}<br>t = %{customdata:.5f}<br>%{x:.4g}<extra></extra>",
  }));
  const layout = chartLayout(snr ? "log(alpha / sigma): noise to data" : "t (0 data, 1 noise)", "");
  if (!snr) layout.xaxis.autorange = "reversed";
  layout.yaxis.autorange = "reversed";
  layout.yaxis.type = "category";
  layout.height = 90 + 34 * Math.max(grids.length, 1);
  byId("grids").style.minHeight = `${layout.height}px`;
  Plotly.react("grids", traces, layout, chartConfig);
}

function startCharts() {
  if (report.charts.length) {
    for (const id of ["log-x", "log-y"]) byId(id).addEventListener("change", drawCharts);
    onChange((what) => { if (what === "legend" || what === "theme") drawCharts(); });
    drawCharts();
  }
  if (report.grids.length) {
    const choice = byId("grid-nfe");
    const all = [...new Set(report.grids.map((g) => g.nfe))].sort((a, b) => a - b);
    for (const nfe of all) choice.append(element("option", { value: nfe, text: nfe }));
    if (gallery) choice.value = String(nfeNow());
    for (const id of ["grid-axis", "grid-nfe"]) byId(id).addEventListener("change", drawGrids);
    onChange((what) => {
      if (what === "nfe" && all.includes(nfeNow())) choice.value = String(nfeNow());
      if (what !== "sample") drawGrids();
    });
    drawGrids();
  }
}
