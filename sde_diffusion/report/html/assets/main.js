"use strict";
// The legend of the page, the theme, and the start.
function startLegend() {
  const legend = byId("legend");
  for (const solver of report.solvers) {
    const box = element("input", { type: "checkbox", value: solver, checked: "" });
    const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
    const paint = () => {
      swatch.style.borderTopColor = colour(solver);
      swatch.style.borderTopStyle = { solid: "solid", dash: "dashed", dot: "dotted", dashdot: "double" }[dash(solver)];
    };
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(solver);
      else state.hidden.add(solver);
      changed("legend");
    });
    onChange((what) => { if (what === "theme") paint(); });
    paint();
    legend.append(element("label", {}, box, swatch, solver));
  }
}

function startTheme() {
  const button = byId("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    changed("theme");
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  system.addEventListener("change", show);
  button.textContent = isDark() ? "Light" : "Dark";
}

startLegend();
startTheme();
if (gallery && budgets.length) {
  startGallery();
  startDetail();
}
startCharts();
startTable();
