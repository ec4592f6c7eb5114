'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};
const number = (x, digits = 2) => x === null || x === undefined ? '–' : x.toFixed(digits);
const percent = x => x === null || x === undefined ? '–' : (100 * x).toFixed(1) + ' %';
const hideWhenEmpty = (element, empty) => { if (empty) element.closest('section').remove(); return empty; };

// What every page begins with.
document.title = $('title').textContent = data.title;
$('made').textContent = data.made;
$('next').textContent = `Next: ${data.next}`;
for (const {text, good} of data.verdict)
  $('verdict').append(make('li', {className: good === null ? '' : good ? 'good' : 'bad', textContent: text}));
const cards = rows => rows.forEach(row => row && $('cards').append(make('div', {className: 'card'}, make('b', {textContent: row[0]}), make('span', {textContent: row[1]}))));

// Some of many things in an element, and behind a box a button for the rest.
function some(element, box, things, limit) {
  if (box.nextElementSibling?.className === 'rest') box.nextElementSibling.remove();
  element.replaceChildren(...things.slice(0, limit));
  if (things.length > limit) box.after(make('button', {className: 'rest', textContent: `Show all ${things.length}`, onclick: event => {
    element.append(...things.slice(limit));
    event.target.remove();
  }}));
}
const gallery = (element, things, limit) => some(element, element, things, limit);

// A table of rows of text, the first of which is the head; what is too wide scrolls in its own box.
function table(element, [head, ...rows], limit = Infinity) {
  const body = make('tbody');
  const box = make('div', {className: 'scroll', tabIndex: 0, role: 'region', ariaLabel: element.closest('section').querySelector('h2').textContent},
    make('table', {}, make('thead', {}, make('tr', {}, ...head.map(text => make('th', {scope: 'col', textContent: text})))), body));
  element.append(box);
  some(body, box, rows.map(row => make('tr', {}, ...row.map(text => make('td', {textContent: text})))), limit);
}

// Rows of a table with what is in brackets below what it is of.
const stacked = rows => rows.map(([name, ...cells]) => [name, ...cells.map(text => text.replace(' (', '\n('))]);

// A row of buttons of which one is pressed; none where there is nothing to choose.
function choice(bar, names, show) {
  names.forEach((name, index) => bar.append(make('button', {textContent: name, onclick: () => {
    [...bar.children].forEach((button, i) => button.setAttribute('aria-pressed', i === index));
    show(index);
  }})));
  bar.children[0].click();
}

// Sizes of a plot; narrow ones have fewer units across, so that text stays legible.
const plotWidth = element => Math.max(300, Math.min(520, element.clientWidth));

// A small 3D view: points and lines, turned and zoomed by mouse, keys or two fingers.
function viewer(canvas, label) {
  const start = {yaw: 0.6, pitch: 0.5, zoom: 1, centre: [0, 0, 0], size: 1, points: null, lines: []};
  let first = start;
  const state = {...start};
  Object.assign(canvas, {tabIndex: 0, role: 'application', ariaLabel: `${label}. Arrow keys turn, plus and minus zoom, Home resets.`});
  const context = canvas.getContext('2d');
  const draw = () => {
    const ratio = window.devicePixelRatio || 1;
    const w = canvas.width = Math.round(canvas.clientWidth * ratio), h = canvas.height = Math.round(canvas.clientHeight * ratio);
    const [sy, cy, sp, cp] = [Math.sin(state.yaw), Math.cos(state.yaw), Math.sin(state.pitch), Math.cos(state.pitch)];
    const scale = 0.9 * Math.min(w, h) * state.zoom / state.size;
    // World axes: x right, y down, z forward; seen from behind and above.
    const project = (x, y, z) => {
      x -= state.centre[0]; y -= state.centre[1]; z -= state.centre[2];
      const x1 = cy * x - sy * z, z1 = sy * x + cy * z;
      const y2 = cp * y - sp * z1, z2 = sp * y + cp * z1;
      const k = 1 / (1 + 0.35 * z2 / state.size);
      return [w / 2 + scale * k * x1, h / 2 + scale * k * y2, z2];
    };
    context.clearRect(0, 0, w, h);
    if (state.points) {
      const image = context.createImageData(w, h), pixels = new Uint32Array(image.data.buffer);
      const depth = new Float32Array(w * h).fill(1e9), {xyz, rgb} = state.points;
      const r = Math.max(1, Math.round(ratio * state.zoom * Math.min(3, 260 / Math.sqrt(xyz.length / 3 + 1))));
      for (let i = 0; i < xyz.length; i += 3) {
        const [u, v, z] = project(xyz[i], xyz[i + 1], xyz[i + 2]);
        const paint = (255 << 24 | rgb[i + 2] << 16 | rgb[i + 1] << 8 | rgb[i]) >>> 0;
        for (let b = Math.max(0, Math.floor(v - r / 2)); b < Math.min(h, v + r / 2); b++)
          for (let a = Math.max(0, Math.floor(u - r / 2)); a < Math.min(w, u + r / 2); a++)
            if (z < depth[b * w + a]) { depth[b * w + a] = z; pixels[b * w + a] = paint; }
      }
      context.putImageData(image, 0, 0);
    }
    context.lineWidth = 1.5 * ratio;
    for (const line of state.lines) {
      const a = project(...line.from), b = project(...line.to);
      context.strokeStyle = line.colour;
      context.beginPath(); context.moveTo(a[0], a[1]); context.lineTo(b[0], b[1]); context.stroke();
    }
    // A scale: the roundest length of at most a third of the width, at the middle's distance.
    const longest = w / 3 / scale, ten = 10 ** Math.floor(Math.log10(longest));
    const length = ten * [5, 2, 1].find(step => step * ten <= longest);
    canvas.dataset.scale = `${Number(length.toPrecision(1))} scene ${length === 1 ? 'unit' : 'units'}`;
    const [left, low, px] = [12 * ratio, h - 14 * ratio, length * scale];
    const {color, backgroundColor} = getComputedStyle(canvas);
    context.font = `${13 * ratio}px system-ui, sans-serif`;
    context.fillStyle = backgroundColor;
    context.fillRect(left - 6 * ratio, low - 24 * ratio, Math.max(px, context.measureText(canvas.dataset.scale).width) + 12 * ratio, 30 * ratio);
    context.strokeStyle = context.fillStyle = color;
    context.beginPath();
    context.moveTo(left, low - 4 * ratio); context.lineTo(left, low); context.lineTo(left + px, low); context.lineTo(left + px, low - 4 * ratio);
    context.stroke();
    context.fillText(canvas.dataset.scale, left, low - 9 * ratio);
  };
  const change = update => { Object.assign(state, update); state.pitch = Math.max(-1.5, Math.min(1.5, state.pitch)); state.zoom = Math.max(0.05, Math.min(100, state.zoom)); draw(); };
  const turn = (dx, dy) => change({yaw: state.yaw + dx * 0.008, pitch: state.pitch + dy * 0.008});
  const zoom = factor => change({zoom: state.zoom * factor});
  const reset = () => change(first);
  let before = null;
  canvas.onpointerdown = event => { if (event.pointerType !== 'touch') { before = event; canvas.setPointerCapture(event.pointerId); } };
  canvas.onpointerup = canvas.onpointercancel = () => before = null;
  canvas.onpointermove = event => { if (before) { turn(event.clientX - before.clientX, event.clientY - before.clientY); before = event; } };
  // One finger scrolls the page; two turn and zoom.
  let fingers = null;
  const hold = event => {
    const [a, b] = event.touches;
    if (event.touches.length !== 2) { fingers = null; return; }
    event.preventDefault();
    const now = {x: (a.clientX + b.clientX) / 2, y: (a.clientY + b.clientY) / 2, gap: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) + 1};
    if (fingers) { turn(now.x - fingers.x, now.y - fingers.y); zoom(now.gap / fingers.gap); }
    fingers = now;
  };
  for (const kind of ['touchstart', 'touchmove', 'touchend', 'touchcancel']) canvas.addEventListener(kind, hold, {passive: false});
  // The wheel scrolls the page until the view was clicked.
  canvas.addEventListener('wheel', event => {
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * 0.001));
  }, {passive: false});
  const keys = {ArrowLeft: () => turn(-15, 0), ArrowRight: () => turn(15, 0), ArrowUp: () => turn(0, -15), ArrowDown: () => turn(0, 15),
    '+': () => zoom(1.15), '=': () => zoom(1.15), '-': () => zoom(1 / 1.15), Home: reset, 0: reset, Escape: () => canvas.blur()};
  canvas.onkeydown = event => { if (keys[event.key] && !event.altKey && !event.metaKey && !event.ctrlKey) { event.preventDefault(); keys[event.key](); } };
  window.addEventListener('resize', draw);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  canvas.after(make('p', {className: 'hint'}, make('button', {textContent: 'Reset the view', onclick: reset}),
    ' Drag to turn, or two fingers. Click it, then scroll to zoom. Keys: arrows, + and −. Red, green and blue lines are right, down and forward of each camera.'));
  return update => { first = {...start, ...update}; reset(); };
}
const pose = rows => Array.isArray(rows[0]) ? rows.flat() : rows;
function axes(poses, length) {
  const lines = [];
  poses.map(pose).forEach((p, i, all) => {
    const centre = [p[3], p[7], p[11]];
    ['#d9443f', '#3fa66b', '#2f7ed8'].forEach((colour, axis) => lines.push({from: centre, colour,
      to: [0, 1, 2].map(row => centre[row] + length * p[4 * row + axis])}));
    if (i) lines.push({from: [all[i - 1][3], all[i - 1][7], all[i - 1][11]], to: centre, colour: '#8a949e'});
  });
  return lines;
}
function bounds(xyz, share) {
  // Of the inner share of the points: a few far ones must not shrink the rest.
  const range = [0, 1, 2].map(axis => {
    const values = Float64Array.from({length: xyz.length / 3}, (_, i) => xyz[3 * i + axis]).sort();
    const at = q => values[Math.min(values.length - 1, Math.floor(q * values.length))];
    return [at((1 - share) / 2), at((1 + share) / 2)];
  });
  return {centre: range.map(([a, b]) => (a + b) / 2), size: Math.max(1e-6, Math.hypot(...range.map(([a, b]) => b - a)))};
}
// Camera paths of several videos, one at a time.
function pathViewer(bar, canvas, paths) {
  const show = viewer(canvas, 'Camera path in 3D');
  choice(bar, paths.map(path => path.name), index => {
    const poses = paths[index].poses.map(pose);
    const box = bounds(poses.flatMap(p => [p[3], p[7], p[11]]), 1);
    show({...box, zoom: 1.5, lines: axes(poses, box.size / 25)});
  });
}
