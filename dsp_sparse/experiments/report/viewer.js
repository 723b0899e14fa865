"use strict";
// A viewer of point clouds in WebGL 1: turn, zoom, move; every view is the same points in other colours.
(() => {
  const root = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("scene-data").textContent);
  const canvas = document.createElement("canvas");
  const gl = canvas.getContext("webgl", {antialias: true});
  if (!gl) return; // The text that is there says that this browser draws nothing in 3D.

  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const UNLABELLED = 255;
  const HALF = Math.tan(Math.PI / 13); // half the height of the picture at distance 1: a field of view of 28 degrees
  const START = {yaw: -2.2, pitch: 0.9};

  function cloud(packed) {
    const steps = new Uint16Array(bytes(packed.position).buffer);
    const position = new Float32Array(steps.length);
    for (let i = 0; i < steps.length; i++) position[i] = packed.low[i % 3] + steps[i] / 65535 * packed.size[i % 3];
    return {
      count: steps.length / 3, position, spacing: packed.spacing,
      colour: bytes(packed.colour), label: bytes(packed.label), ceiling: bytes(packed.ceiling),
    };
  }

  const scene = cloud(data.scene);
  const runs = data.runs.map(run => ({name: run.name, label: bytes(run.label), confidence: bytes(run.confidence)}));
  const clouds = data.clouds.map(cloud);
  const affinity = data.affinity.map(one => ({...one, weight: new Float32Array(bytes(one.weight).buffer)}));
  const className = label => label === UNLABELLED ? "no label" : data.classes[label];
  const percent = share => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

  // ---- what can be shown ----

  const NOTHING = [150, 150, 150], RIGHT = [168, 186, 199], WRONG = [214, 39, 40];
  const classColour = label => label === UNLABELLED ? NOTHING : data.palette[label];
  const scale = share => [Math.round(255 * Math.min(1, 2 * share)), Math.round(200 * Math.min(1, 2 - 2 * share)), 40];
  const classLegend = labels => {
    const present = new Set(labels);
    const found = data.classes.map((name, i) => [name, data.palette[i]]).filter((_, i) => present.has(i));
    return present.has(UNLABELLED) ? [...found, ["no label", NOTHING]] : found;
  };
  const truth = i => `ground truth: ${className(scene.label[i])}`;
  const says = (run, i) => `${run.name}: ${className(run.label[i])} (${percent(run.confidence[i] / 255)})`;
  const all = i => [truth(i), ...runs.map(run => says(run, i))].join(" · ");
  let last = runs[0];

  const modes = [
    {name: "Colour", points: () => ofScene(i => scene.colour.subarray(3 * i, 3 * i + 3)), legend: () => [], tell: all},
    {name: "Ground truth", points: () => ofScene(i => classColour(scene.label[i])),
      legend: () => classLegend(scene.label), tell: all},
    ...runs.map(run => ({
      name: run.name, run, points: () => ofScene(i => classColour(run.label[i])), legend: () => classLegend(run.label),
      tell: i => `${truth(i)} · ${says(run, i)}`,
    })),
  ];
  if (runs.length) modes.push({
    name: "Errors",
    points: () => ofScene(i =>
      scene.label[i] === UNLABELLED ? NOTHING : last.label[i] === scene.label[i] ? RIGHT : WRONG),
    legend: () => [[`${last.name} is right`, RIGHT], ["it is wrong", WRONG],
      ...(scene.label.includes(UNLABELLED) ? [["no label", NOTHING]] : [])],
    tell: i => `${truth(i)} · ${says(last, i)}`,
  });
  if (affinity.length) modes.push({name: "Affinity", affinity: true, points: ofAffinity, legend: affinityLegend});

  function ofScene(colour) {
    const shown = allocate(scene.count);
    shown.spacing = scene.spacing;
    shown.position.set(scene.position);
    for (let i = 0; i < scene.count; i++) paint(shown, i, colour(i), hidden(scene, i) ? 0 : 1);
    return shown;
  }

  // Left (on a narrow screen: above) what a point attends to, over the paler ball that this stands for; right its own
  // ball, and last the point itself.
  function ofAffinity() {
    const one = affinity[chooser.value], [source, context, target] = [one.source, one.context, one.target].map(i => clouds[i]);
    const shown = allocate(source.count + context.count + target.count + 2);
    shown.spacing = target.spacing;
    shown.onTop = 2;
    const greatest = Math.max(...one.weight);
    const first = axes(START), side = narrow() ? first.up.map(x => -x) : first.right;
    const left = shift(context, side, -1), right = shift(target, side, 1);
    const words = [];
    let next = 0;
    const add = (points, by, size, colour, tell) => {
      for (let i = 0; i < points.count; i++, next++) {
        for (let k = 0; k < 3; k++) shown.position[3 * next + k] = points.position[3 * i + k] + by[k];
        paint(shown, next, colour(i), points.ceiling && hidden(points, i) ? 0 : size);
        words.push(() => tell(i));
      }
    };
    const ground = background();
    const own = (points, share) =>
      i => Array.from(points.colour.subarray(3 * i, 3 * i + 3), (c, k) => share * c + (1 - share) * ground[k]);
    const large = Math.min(3.6, Math.max(2.2, source.spacing / target.spacing / 3));
    add(source, left, large, i => scale(Math.sqrt(one.weight[i] / greatest)),
      i => `${className(source.label[i])}, gets ${percent(one.weight[i])} of the affinity`);
    add(context, left, 1, own(context, 0.3), () => "input points of the ball that it attends to");
    add(target, right, 1, own(target, 0.85), i => `ground truth: ${className(target.label[i])}`);
    for (const [size, colour] of [[3.6, [255, 255, 255]], [2.6, [255, 0, 0]]]) {
      add({count: 1, position: one.point}, right, size, () => colour, () => `the chosen point: ${className(one.label)}`);
    }
    shown.tell = i => words[i]();
    return shown;
  }

  // What moves a cloud to one side of the origin, centred on what is visible of it.
  function shift(points, side, sign) {
    const low = [Infinity, Infinity, Infinity], high = low.map(x => -x), visible = [];
    for (let i = 0; i < points.count; i++) {
      if (hidden(points, i)) continue;
      visible.push(points.position.subarray(3 * i, 3 * i + 3));
      visible[visible.length - 1].forEach((x, k) => { low[k] = Math.min(low[k], x); high[k] = Math.max(high[k], x); });
    }
    const middle = low.map((x, k) => visible.length ? (x + high[k]) / 2 : 0);
    let reach = 0;
    for (const point of visible) reach = Math.max(reach, Math.abs(dot(point.map((x, k) => x - middle[k]), side)));
    return middle.map((x, k) => sign * 1.1 * reach * side[k] - x);
  }

  function affinityLegend() {
    const one = affinity[chooser.value], greatest = Math.max(...one.weight);
    return [["attended to most: " + percent(greatest), scale(1)], ["a quarter of it", scale(0.5)], ["not at all", scale(0)],
      [`${narrow() ? "below" : "right"}: the chosen point`, [255, 0, 0]]];
  }

  // A chosen point of the ceiling brings the ceiling with it.
  const hidden = (points, i) =>
    ceiling.checked && points.ceiling[i] && !(active().affinity && affinity[chooser.value].ceiling);

  function allocate(count) {
    return {count, position: new Float32Array(3 * count), colour: new Uint8Array(4 * count)};
  }

  // The fourth byte is the size of the point in 32nds of the usual; 0 hides it.
  function paint(shown, i, colour, size) {
    shown.colour.set(colour, 4 * i);
    shown.colour[4 * i + 3] = Math.min(255, Math.round(32 * size));
  }

  // ---- controls ----

  const element = (name, properties, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const radios = modes.map((mode, i) => element("input", {type: "radio", name: "view", value: i, checked: i === 0}));
  const chooser = element("select", {id: "chosen"}, ...affinity.map((one, i) => element("option", {value: i}, one.name)));
  const size = element("input", {type: "range", min: 0.5, max: 4, step: 0.1, value: 1.4, id: "size"});
  const ceiling = element("input", {type: "checkbox", checked: true, id: "ceiling"});
  const reset = element("button", {type: "button", id: "reset"}, "Reset view");
  const choosing = element("label", {hidden: true}, "Chosen point ", chooser);
  const told = element("output", {id: "told"});
  const legend = element("ul", {className: "legend", id: "shown"});
  const controls = [element("label", {}, "Point size ", size)];
  if (scene.ceiling.includes(1)) controls.push(element("label", {}, ceiling, " hide the ceiling"));
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label",
    "3D view of the scene. Arrow keys turn it, with shift they move it, plus and minus zoom, 0 resets.");
  root.replaceChildren(
    element("fieldset", {className: "modes"}, element("legend", {}, "Show"),
      ...modes.map((mode, i) => element("label", {}, radios[i], element("span", {}, mode.name)))),
    element("div", {className: "controls"}, choosing, ...controls, reset),
    element("div", {className: "stage"}, canvas, told), legend,
    element("p", {className: "hint"}, "Drag to turn, drag with shift or the right button to move, turn the wheel to zoom " +
      "(after a click). With fingers: one turns, two move and zoom. With the keyboard: arrows, shift and arrows, + and −, 0."),
  );
  const active = () => modes[radios.findIndex(radio => radio.checked)];
  const narrow = () => canvas.clientWidth < canvas.clientHeight * 1.1;
  // Other points need another look at them; other colours of the same do not.
  let looked = null, stacked = null;
  function choose(again) {
    const mode = active();
    stacked = narrow();
    if (mode.run) last = mode.run;
    choosing.hidden = !mode.affinity;
    shown = mode.points();
    load();
    const subject = mode.affinity ? chooser.value : "scene";
    if (again === true || subject !== looked) fit();
    looked = subject;
    told.textContent = "";
    legend.replaceChildren(...mode.legend().map(([name, colour]) => {
      const swatch = element("span", {className: "swatch"});
      swatch.style.background = `rgb(${colour})`;
      return element("li", {}, swatch, name);
    }));
  }
  for (const input of [...radios, chooser, ceiling]) input.addEventListener("change", choose);
  size.addEventListener("input", () => draw());
  reset.addEventListener("click", () => fit());

  // ---- drawing ----

  let shown, program, buffers, waiting = false;
  const camera = {...START, distance: 10, target: [0, 0, 0]};

  function start() {
    const shader = (kind, source) => {
      const made = gl.createShader(kind);
      gl.shaderSource(made, source);
      gl.compileShader(made);
      gl.attachShader(program, made);
    };
    program = gl.createProgram();
    shader(gl.VERTEX_SHADER, `
      attribute vec3 position; attribute vec4 colour; uniform mat4 view; uniform vec3 size; uniform vec2 depth;
      varying vec3 tint;
      void main() {
        float times = colour.a * 255.0 / 32.0;
        gl_Position = times > 0.0 ? view * vec4(position, 1.0) : vec4(0.0, 0.0, 2.0, 1.0);
        gl_PointSize = max(size.x * times / gl_Position.w, size.y);
        // A large point is a ball: its front stands out of the usual points around it.
        float front = gl_Position.w - size.z * max(times - 1.0, 0.0);
        if (times > 0.0 && front > 0.0) gl_Position.z = (depth.x + depth.y / front) * gl_Position.w;
        tint = colour.rgb;
      }`);
    shader(gl.FRAGMENT_SHADER, `
      precision mediump float; varying vec3 tint;
      void main() {
        vec2 place = gl_PointCoord - 0.5;
        float edge = dot(place, place);
        if (edge > 0.25) discard;
        gl_FragColor = vec4(tint * (1.0 - 0.5 * edge), 1.0);
      }`);
    gl.bindAttribLocation(program, 0, "position");
    gl.bindAttribLocation(program, 1, "colour");
    gl.linkProgram(program);
    buffers = [gl.createBuffer(), gl.createBuffer()];
    for (const attribute of [0, 1]) gl.enableVertexAttribArray(attribute);
  }

  function load() {
    gl.bindBuffer(gl.ARRAY_BUFFER, buffers[0]);
    gl.bufferData(gl.ARRAY_BUFFER, shown.position, gl.STATIC_DRAW);
    gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffers[1]);
    gl.bufferData(gl.ARRAY_BUFFER, shown.colour, gl.STATIC_DRAW);
    gl.vertexAttribPointer(1, 4, gl.UNSIGNED_BYTE, true, 0, 0);
    draw();
  }

  // Axes of the picture in the world: right, up, and forward into it.
  function axes({yaw, pitch} = camera) {
    const [c, s, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    return {right: [-s, c, 0], up: [-sp * c, -sp * s, cp], forward: [-cp * c, -cp * s, -sp]};
  }
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

  // The depth in the picture of what is at a distance is the first of these plus the second by the distance.
  function depths() {
    const near = camera.distance / 50, far = camera.distance * 20;
    return [(far + near) / (far - near), -2 * far * near / (far - near)];
  }

  function viewMatrix() {
    const {right, up, forward} = axes(), aspect = canvas.width / canvas.height, depth = depths();
    const eye = camera.target.map((x, k) => x - camera.distance * forward[k]);
    const rows = [right.map(x => x / (HALF * aspect)), up.map(x => x / HALF), forward.map(x => x * depth[0]), forward];
    const last = rows.map(row => -dot(row, eye));
    last[2] += depth[1];
    return new Float32Array([0, 1, 2].flatMap(k => rows.map(row => row[k])).concat(last));
  }

  const background = () => getComputedStyle(canvas).backgroundColor.match(/[\d.]+/g).slice(0, 3).map(Number);

  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const ground = background().map(x => x / 255);
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clearColor(ground[0], ground[1], ground[2], 1);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.useProgram(program);
      gl.uniformMatrix4fv(gl.getUniformLocation(program, "view"), false, viewMatrix());
      const metres = shown.spacing * size.value; // the usual width of a point
      gl.uniform3f(gl.getUniformLocation(program, "size"), canvas.height / 2 / HALF * metres, 1.5 * devicePixelRatio, metres);
      gl.uniform2f(gl.getUniformLocation(program, "depth"), ...depths());
      gl.enable(gl.DEPTH_TEST);
      const inside = shown.count - (shown.onTop || 0);
      gl.drawArrays(gl.POINTS, 0, inside);
      gl.disable(gl.DEPTH_TEST); // nothing hides the chosen point
      if (shown.onTop) gl.drawArrays(gl.POINTS, inside, shown.onTop);
    });
  }

  // Looks at the visible points from the first direction, from where all of them just fit into the picture.
  function fit() {
    Object.assign(camera, START);
    const {right, up, forward} = axes(), aspect = canvas.width / canvas.height, visible = [];
    for (let i = 0; i < shown.count; i++) {
      if (!shown.colour[4 * i + 3]) continue;
      const point = shown.position.subarray(3 * i, 3 * i + 3);
      visible.push([dot(point, right), dot(point, up), dot(point, forward)]);
    }
    if (!visible.length) return;
    const middle = [0, 0, 0];
    for (const seen of visible) seen.forEach((x, k) => { middle[k] += x / visible.length; });
    // Near points spread more than far ones: the middle of what is seen is found step by step.
    for (let round = 0; round < 8; round++) {
      camera.distance = 0.1;
      for (const [x, y, z] of visible) {
        const needed = Math.max(Math.abs(x - middle[0]) / HALF / aspect, Math.abs(y - middle[1]) / HALF);
        camera.distance = Math.max(camera.distance, needed - (z - middle[2]));
      }
      const low = [Infinity, Infinity], high = [-Infinity, -Infinity];
      for (const seen of visible) {
        const depth = camera.distance + seen[2] - middle[2];
        for (const k of [0, 1]) {
          low[k] = Math.min(low[k], (seen[k] - middle[k]) / depth);
          high[k] = Math.max(high[k], (seen[k] - middle[k]) / depth);
        }
      }
      for (const k of [0, 1]) middle[k] += (low[k] + high[k]) / 2 * camera.distance;
    }
    camera.target = [0, 1, 2].map(k => middle[0] * right[k] + middle[1] * up[k] + middle[2] * forward[k]);
    camera.distance *= 1.06;
    draw();
  }

  // ---- turning, moving, zooming, asking ----

  function turn(dx, dy) {
    camera.yaw -= 0.006 * dx;
    camera.pitch = Math.max(-1.55, Math.min(1.55, camera.pitch + 0.006 * dy));
    draw();
  }

  function move(dx, dy) {
    const {right, up} = axes(), step = 2 * HALF * camera.distance / canvas.clientHeight;
    camera.target = camera.target.map((x, k) => x + step * (dy * up[k] - dx * right[k]));
    draw();
  }

  function zoom(factor) {
    camera.distance = Math.max(0.1, Math.min(1000, camera.distance * factor));
    draw();
  }

  // The nearest of the points under a place of the canvas; -1 where there is none.
  function at(x, y) {
    const m = viewMatrix(), p = shown.position, reach = 7;
    let found = -1, best = Infinity;
    for (let i = 0; i < shown.count; i++) {
      if (!shown.colour[4 * i + 3]) continue;
      const [a, b, c] = [p[3 * i], p[3 * i + 1], p[3 * i + 2]];
      const depth = m[3] * a + m[7] * b + m[11] * c + m[15];
      if (depth <= 0 || depth >= best) continue;
      const px = ((m[0] * a + m[4] * b + m[8] * c + m[12]) / depth + 1) / 2 * canvas.clientWidth;
      const py = (1 - (m[1] * a + m[5] * b + m[9] * c + m[13]) / depth) / 2 * canvas.clientHeight;
      if ((px - x) ** 2 + (py - y) ** 2 > reach ** 2) continue;
      best = depth;
      found = i;
    }
    return found;
  }

  function ask(event) {
    const box = canvas.getBoundingClientRect(), found = at(event.clientX - box.left, event.clientY - box.top);
    told.textContent = found < 0 ? "" : (shown.tell || active().tell)(found);
  }

  const fingers = new Map();
  let asking = 0;
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return {x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, gap: Math.hypot(a.x - b.x, a.y - b.y)};
  };
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, {x: event.clientX, y: event.clientY});
    ask(event);
  });
  canvas.addEventListener("pointermove", event => {
    const before = fingers.get(event.pointerId);
    if (!before) {
      cancelAnimationFrame(asking);
      asking = requestAnimationFrame(() => ask(event));
      return;
    }
    const now = {x: event.clientX, y: event.clientY};
    if (fingers.size === 2) {
      const old = spread();
      fingers.set(event.pointerId, now);
      const fresh = spread();
      move(fresh.x - old.x, fresh.y - old.y);
      if (fresh.gap > 0) zoom(old.gap / fresh.gap);
      return;
    }
    fingers.set(event.pointerId, now);
    (event.shiftKey || event.buttons & 6 ? move : turn)(now.x - before.x, now.y - before.y);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, event => fingers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", event => {
    if (event.pointerType === "mouse") told.textContent = ""; // a finger leaves when it is lifted
  });
  canvas.addEventListener("contextmenu", event => event.preventDefault());
  canvas.addEventListener("wheel", event => {
    if (document.activeElement !== canvas) return; // until it is clicked the wheel scrolls the page
    event.preventDefault();
    zoom(Math.exp(0.0015 * event.deltaY));
  }, {passive: false});
  canvas.addEventListener("keydown", event => {
    const [dx, dy] = {ArrowLeft: [-20, 0], ArrowRight: [20, 0], ArrowUp: [0, -20], ArrowDown: [0, 20]}[event.key] || [0, 0];
    if (dx || dy) (event.shiftKey ? move : turn)(dx, dy);
    else if (event.key === "+") zoom(1 / 1.15);
    else if (event.key === "-") zoom(1.15);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("webglcontextlost", event => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => { start(); load(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => choose());

  function resize() {
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
  }
  start();
  resize();
  choose(true);
  new ResizeObserver(() => {
    resize();
    if (active().affinity && stacked !== narrow()) choose(true); // a phone was turned: what was above is left now
    else draw();
  }).observe(canvas);
})();
