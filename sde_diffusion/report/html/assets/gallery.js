"use strict";
// The gallery: a slider over NFE, a row (or a panel) for each solver, the reference first.
const budgets = gallery ? [...new Set(gallery.shown.map((s) => s.nfe))].sort((a, b) => a - b) : [];
const nfeNow = () => budgets[state.nfe];
const shownAt = (solver, nfe) => gallery.shown.find((s) => s.solver === solver && s.nfe === nfe);
const gallerySolvers = () => [...new Set(gallery.shown.map((s) => s.solver))].filter(visible);
const isCloud = () => gallery.kind === "points" || gallery.kind === "vector";

function meanError(found) {
  return found.error ? `mean error ${digits(found.error.reduce((a, b) => a + b, 0) / found.error.length)}` : "stochastic";
}

function drawGallery() {
  const area = byId("samples");
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : null;
  area.replaceChildren(isCloud() ? clouds() : rows());
  if (focused) {
    const again = [...area.querySelectorAll("[data-key]")].find((e) => e.dataset.key === focused);
    if (again) again.focus({ preventScroll: true });
  }
  const missing = gallery.missing.filter((m) => m.nfe === nfeNow() && visible(m.solver));
  const pooled = gallery.kind === "image" && String(gallery.shape) !== String(gallery.original);
  byId("gallery-note").textContent = [
    isCloud()
      ? "Choose a point with a click or with the left and right arrow keys."
      : "Each column starts from the same initial noise. Choose a sample with a click or the arrow keys.",
    pooled ? `Images of ${gallery.original.slice(1).join(" x ")} pixels are shown at ${gallery.shape.slice(1).join(" x ")}.` : "",
    ...missing.map((m) => `${m.solver}: ${m.reason}.`),
  ].join(" ");
}

function rows() {
  const grid = element("div", { class: "rows" });
  grid.style.gridTemplateColumns = `max-content repeat(${gallery.count}, max-content)`;
  const add = (name, remark, encoded, below) => {
    const label = element("div", { class: "name", text: name });
    if (remark) label.append(element("small", { text: remark }));
    grid.append(label);
    for (let k = 0; k < gallery.count; k++) {
      const picked = k === state.sample;
      const button = element("button", {
        type: "button", class: "sample", "aria-pressed": String(picked), tabindex: picked ? "0" : "-1",
        "data-key": `${name}/${k}`, "aria-label": `sample ${k} of ${name}`,
      });
      button.append(tile(encoded, k, false, "", below));
      button.addEventListener("click", () => pick(k));
      grid.append(button);
    }
  };
  add("initial noise", "", gallery.noise);
  if (gallery.reference) add("reference", "solution", gallery.reference);
  for (const solver of gallerySolvers()) {
    const found = shownAt(solver, nfeNow());
    if (found) add(solver, meanError(found), found.x, gallery.reference);
  }
  grid.addEventListener("keydown", (event) => moveSelection(event, 1));
  return grid;
}

function moveSelection(event) {
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!move) return;
  event.preventDefault();
  pick((state.sample + move + gallery.count) % gallery.count);
  const key = event.target.dataset.key;
  const name = key && key.slice(0, key.lastIndexOf("/"));
  const next = [...document.querySelectorAll("[data-key]")].find(
    (e) => e.dataset.key === key || e.dataset.key === `${name}/${state.sample}`);
  if (next) next.focus({ preventScroll: true });
}

// The pairs of entries that are drawn: one for points, up to 3 entries against each other for vectors.
function entries() {
  if (gallery.kind === "points") return [[1, 0]];
  const most = Math.min(gallery.shape[0], 3);
  const found = [];
  for (let i = 1; i < most; i++) for (let j = 0; j < i; j++) found.push([i, j]);
  return found;
}

function cloudRange() {
  const all = gallery.reference ? tensor(gallery.reference).values : tensor(gallery.shown[0].x).values;
  const sorted = Float32Array.from(all).sort();
  const cut = Math.floor(sorted.length / 500);
  const reach = 1.25 * Math.max(Math.abs(sorted[cut]), Math.abs(sorted[sorted.length - 1 - cut]));
  return [-reach, reach];
}

function clouds() {
  const range = cloudRange();
  const [low, high] = range;
  const holder = element("div", { class: "panels" });
  const add = (name, remark, encoded, below, style, paths) => {
    const figure = element("figure");
    const caption = element("figcaption", { text: name });
    const values = tensor(encoded).values;
    let outside = 0;
    for (let k = 0; k < gallery.count; k++)
      if (row(encoded, k).some((v) => v < low || v > high)) outside++;
    if (values.length && outside) remark = [remark, `${outside} of ${gallery.count} outside`].filter(Boolean).join(", ");
    if (remark) caption.append(" ", element("small", { text: remark }));
    figure.append(caption);
    for (const [i, j] of entries()) {
      const side = gallery.kind === "points" ? 210 : 130;
      const made = canvas(side, side, `entries ${j} and ${i} of samples of ${name}`);
      made.tabIndex = 0;
      made.dataset.key = `${name}/${i}/${j}/`;
      paintCloud(made, encoded, below, range, i, j, style, paths);
      made.addEventListener("click", (event) => pick(nearest(event, made, encoded, range, i, j)));
      made.addEventListener("keydown", moveSelection);
      made.style.display = "inline-block";
      made.style.marginRight = "4px";
      figure.append(made);
    }
    holder.append(figure);
  };
  const reference = gallery.referencePath ? [[gallery.referencePath, css("--soft"), [4, 3]]] : [];
  if (gallery.reference) add("reference", "", gallery.reference, null, css("--text"), reference);
  for (const solver of gallerySolvers()) {
    const found = shownAt(solver, nfeNow());
    if (!found) continue;
    const own = found.path ? [[found.path, colour(solver), []]] : [];
    add(solver, meanError(found), found.x, gallery.reference, colour(solver), [...reference, ...own]);
  }
  return holder;
}

function nearest(event, made, encoded, range, i, j) {
  const box = made.getBoundingClientRect();
  const scale = (range[1] - range[0]) / box.width;
  const x = range[0] + (event.clientX - box.left) * scale;
  const y = range[0] + (box.bottom - event.clientY) * scale;
  const { values, size } = tensor(encoded);
  let [best, found] = [Infinity, 0];
  for (let k = 0; k < gallery.count; k++) {
    const distance = (values[k * size + j] - x) ** 2 + (values[k * size + i] - y) ** 2;
    if (distance < best) [best, found] = [distance, k];
  }
  return found;
}

function pick(k) {
  state.sample = k;
  changed("sample");
}

function startGallery() {
  const slider = byId("nfe");
  slider.max = String(budgets.length - 1);
  state.nfe = Math.floor((budgets.length - 1) / 2);
  slider.value = String(state.nfe);
  const show = () => {
    byId("nfe-shown").textContent = `${nfeNow()} evaluations`;
    slider.setAttribute("aria-valuetext", `${nfeNow()} evaluations`);
  };
  slider.addEventListener("input", () => {
    state.nfe = Number(slider.value);
    show();
    changed("nfe");
  });
  show();
  onChange(drawGallery);
  drawGallery();
}
