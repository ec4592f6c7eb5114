'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};
const number = (x, digits = 2) => x === null || x === undefined ? '–' : x.toFixed(digits);
const hideWhenEmpty = (element, empty) => { if (empty) element.closest('section').remove(); return empty; };

function table(element, head, rows) {
  element.append(make('tr', {}, ...head.map(text => make('th', {textContent: text}))));
  for (const row of rows) element.append(make('tr', {}, ...row.map(value => value instanceof Node ? value : make('td', {textContent: value}))));
}

// A row of buttons of which one is pressed.
function choice(bar, names, show) {
  names.forEach((name, index) => bar.append(make('button', {textContent: name, onclick: () => {
    [...bar.children].forEach((button, i) => button.setAttribute('aria-pressed', i === index));
    show(index);
  }})));
  bar.children[0].click();
}

// A small 3D view: points and lines, turned by dragging.
function viewer(canvas) {
  const state = {yaw: 0.6, pitch: 0.5, zoom: 1, centre: [0, 0, 0], size: 1, points: null, lines: []};
  const draw = () => {
    const ratio = window.devicePixelRatio || 1;
    const w = canvas.width = Math.round(canvas.clientWidth * ratio), h = canvas.height = Math.round(canvas.clientHeight * ratio);
    const context = canvas.getContext('2d');
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
      const image = context.createImageData(w, h), depth = new Float32Array(w * h).fill(1e9), {xyz, rgb} = state.points;
      const r = Math.max(1, Math.round(ratio * state.zoom * Math.min(3, 260 / Math.sqrt(xyz.length / 3 + 1))));
      for (let i = 0; i < xyz.length; i += 3) {
        const [u, v, z] = project(xyz[i], xyz[i + 1], xyz[i + 2]);
        for (let b = Math.max(0, Math.floor(v - r / 2)); b < Math.min(h, v + r / 2); b++)
          for (let a = Math.max(0, Math.floor(u - r / 2)); a < Math.min(w, u + r / 2); a++)
            if (z < depth[b * w + a]) {
              depth[b * w + a] = z;
              image.data.set([rgb[i], rgb[i + 1], rgb[i + 2], 255], 4 * (b * w + a));
            }
      }
      context.putImageData(image, 0, 0);
    }
    context.lineWidth = 1.5 * ratio;
    for (const {from, to, colour} of state.lines) {
      const a = project(...from), b = project(...to);
      context.strokeStyle = colour;
      context.beginPath(); context.moveTo(a[0], a[1]); context.lineTo(b[0], b[1]); context.stroke();
    }
  };
  const pointers = new Map();
  canvas.onpointerdown = event => { pointers.set(event.pointerId, event); canvas.setPointerCapture(event.pointerId); };
  canvas.onpointerup = canvas.onpointercancel = event => pointers.delete(event.pointerId);
  canvas.onpointermove = event => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    if (pointers.size === 2) {
      const other = [...pointers.values()].find(p => p.pointerId !== event.pointerId);
      const gap = p => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY) + 1;
      state.zoom *= gap(event) / gap(before);
    } else {
      state.yaw += (event.clientX - before.clientX) * 0.008;
      state.pitch = Math.max(-1.5, Math.min(1.5, state.pitch + (event.clientY - before.clientY) * 0.008));
    }
    pointers.set(event.pointerId, event);
    draw();
  };
  canvas.addEventListener('wheel', event => { event.preventDefault(); state.zoom *= Math.exp(-event.deltaY * 0.001); draw(); }, {passive: false});
  window.addEventListener('resize', draw);
  return update => { Object.assign(state, update); draw(); };
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
