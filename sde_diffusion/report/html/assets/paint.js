"use strict";
// Samples on canvases: images, signals, points in 2-D and vectors.
const gallery = report.gallery;

function canvas(width, height, label) {
  const made = element("canvas", { role: "img", "aria-label": label });
  const ratio = gallery.kind === "image" ? 1 : Math.min(window.devicePixelRatio || 1, 2);
  made.width = Math.round(width * ratio);
  made.height = Math.round(height * ratio);
  made.style.width = `${width}px`;
  made.style.height = `${height}px`;
  const context = made.getContext("2d");
  context.scale(ratio, ratio);
  made.context = context;
  return made;
}

// The size of one sample on the screen.
function tileSize(large) {
  if (gallery.kind !== "image") return large ? [150, 70] : [96, 48];
  const [, height, width] = gallery.shape;
  const side = large ? 84 : 56;
  const scale = Math.max(side / Math.max(height, width), 1 / 4);
  return [Math.round(width * scale), Math.round(height * scale)];
}

function pixels(width, height, colourOf) {
  const made = element("canvas");
  made.width = width;
  made.height = height;
  const image = new ImageData(width, height);
  for (let k = 0; k < width * height; k++) image.data.set([...colourOf(k), 255], 4 * k);
  made.getContext("2d").putImageData(image, 0, 0);
  return made;
}

function paintImage(onto, values, channels) {
  const [, height, width] = gallery.shape;
  const colourOf = (k) =>
    channels === 1 ? [values[k], values[k], values[k]] : [values[3 * k], values[3 * k + 1], values[3 * k + 2]];
  onto.context.imageSmoothingEnabled = false;
  onto.context.drawImage(pixels(width, height, colourOf), 0, 0, onto.width, onto.height);
}

// Blue below the reference, white at it, red above; the mean over channels.
function paintDifference(onto, encoded, k, scale) {
  const [channels, height, width] = gallery.shape;
  const all = encoded.values || (encoded.values = new Int8Array(bytes(encoded.i8).buffer));
  const size = channels * height * width;
  const factor = encoded.scale[k] / 127 / scale;
  const colourOf = (p) => {
    let mean = 0;
    for (let c = 0; c < channels; c++) mean += all[k * size + c * height * width + p] / channels;
    const v = Math.max(-1, Math.min(1, mean * factor));
    const rest = Math.round(255 * (1 - Math.abs(v)));
    return v < 0 ? [rest, rest, 255] : [255, rest, rest];
  };
  onto.context.imageSmoothingEnabled = false;
  onto.context.drawImage(pixels(width, height, colourOf), 0, 0, onto.width, onto.height);
}

// Lines of a signal (C, L), or the entries of a vector, over those of the reference in grey.
function paintSignal(onto, values, below, range) {
  const channels = gallery.shape.length > 1 ? gallery.shape[0] : 1;
  const length = values.length / channels;
  const width = parseFloat(onto.style.width);
  const height = parseFloat(onto.style.height);
  const y = (v) => height - 3 - ((v - range[0]) / (range[1] - range[0] || 1)) * (height - 6);
  const draw = (all, style) => {
    onto.context.strokeStyle = style;
    onto.context.lineWidth = 1.2;
    for (let c = 0; c < channels; c++) {
      onto.context.beginPath();
      for (let k = 0; k < length; k++) {
        const x = length > 1 ? 2 + (k / (length - 1)) * (width - 4) : width / 2;
        const at = y(all[c * length + k]);
        if (k === 0) onto.context.moveTo(x, at);
        else onto.context.lineTo(x, at);
        if (length === 1) onto.context.arc(x, at, 2, 0, 6.3);
      }
      onto.context.stroke();
    }
  };
  if (below) draw(below, css("--soft"));
  draw(values, css("--accent"));
}

function rangeOf(lists) {
  let [low, high] = [Infinity, -Infinity];
  for (const values of lists)
    for (const v of values) {
      if (v < low) low = v;
      if (v > high) high = v;
    }
  const pad = 0.05 * (high - low || 1);
  return [low - pad, high + pad];
}

// One sample of one kind of data onto a canvas of its own.
function tile(encoded, k, large, label, below) {
  const made = canvas(...tileSize(large), label);
  if (gallery.kind === "image") paintImage(made, row(encoded, k), gallery.shape[0]);
  else {
    const values = row(encoded, k);
    const reference = below ? row(below, k) : null;
    paintSignal(made, values, reference, rangeOf(reference ? [values, reference] : [values]));
  }
  return made;
}

// All points, entries i and j of each, the reference below in grey, the selected one marked, with its path.
function paintCloud(onto, encoded, below, range, i, j, style, paths) {
  const width = parseFloat(onto.style.width);
  const x = (v) => ((v - range[0]) / (range[1] - range[0])) * width;
  const y = (v) => width - x(v);
  const context = onto.context;
  context.clearRect(0, 0, width, width);
  const dots = (all, fill, radius) => {
    const { values, size } = tensor(all);
    context.fillStyle = fill;
    for (let k = 0; k < gallery.count; k++)
      context.fillRect(x(values[k * size + j]) - radius, y(values[k * size + i]) - radius, 2 * radius, 2 * radius);
  };
  if (below) dots(below, css("--line"), 1.5);
  dots(encoded, style, 1.2);
  for (const [path, stroke, pattern] of paths || []) {
    const { values, shape } = tensor(path);
    context.setLineDash(pattern);
    context.strokeStyle = stroke;
    context.lineWidth = 1.5;
    context.beginPath();
    for (let n = 0; n < shape[0]; n++) {
      const at = 2 * (n * gallery.count + state.sample);
      if (n === 0) context.moveTo(x(values[at]), y(values[at + 1]));
      else context.lineTo(x(values[at]), y(values[at + 1]));
    }
    context.stroke();
    context.setLineDash([]);
  }
  const { values, size } = tensor(encoded);
  context.strokeStyle = css("--text");
  context.lineWidth = 1.5;
  context.beginPath();
  context.arc(x(values[state.sample * size + j]), y(values[state.sample * size + i]), 5, 0, 6.3);
  context.stroke();
}
