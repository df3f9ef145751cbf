"use strict";
// The data of the page, what is selected, and who is told when that changes.
const report = JSON.parse(document.getElementById("data").textContent);
const state = { nfe: 0, sample: 0, hidden: new Set() };
const listeners = [];
const onChange = (listener) => listeners.push(listener);
const changed = (what) => listeners.forEach((listener) => listener(what));

const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function bytes(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let k = 0; k < raw.length; k++) out[k] = raw.charCodeAt(k);
  return out;
}

// An encoded tensor with its values: bytes, or float32 (little-endian).
function tensor(encoded) {
  if (!encoded || encoded.values) return encoded;
  if (encoded.u8 !== undefined) encoded.values = bytes(encoded.u8);
  else {
    const raw = bytes(encoded.f32);
    const view = new DataView(raw.buffer);
    encoded.values = Float32Array.from({ length: raw.length / 4 }, (_, k) => view.getFloat32(4 * k, true));
  }
  encoded.size = encoded.shape.slice(1).reduce((a, b) => a * b, 1);
  return encoded;
}

// Row k of an encoded tensor.
function row(encoded, k) {
  const found = tensor(encoded);
  return found.values.subarray(k * found.size, (k + 1) * found.size);
}

const colour = (name) => {
  const index = report.solvers.indexOf(name);
  return getComputedStyle(document.documentElement).getPropertyValue(`--s${(index < 0 ? 7 : index) % 8}`).trim();
};
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const DASHES = ["solid", "dash", "dot", "dashdot"];
const dash = (name) => DASHES[Math.floor(report.solvers.indexOf(name) / 8) % DASHES.length];
const visible = (name) => !state.hidden.has(name);
const digits = (value, count = 3) => (value === null || value === undefined ? "" : Number(value.toPrecision(count)).toString());
