"use strict";
// The 3D viewer: two linked NiiVue canvases, started when its tab is first shown.
(() => {
  const root = document.querySelector(".viewer");
  const controls = root.querySelector(".controls");
  const field = controls.elements;
  const [left, right] = root.querySelectorAll("canvas");
  const captions = [left, right].map((canvas) => canvas.closest("figure").querySelector("figcaption"));
  const place = root.querySelector(".place");
  const HEADER = 352; // bytes before the voxels of a NIfTI file
  let data, niivue, viewers, subject, pending = Promise.resolve();

  async function unpacked(base64) {
    const packed = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  async function library() {
    const source = await unpacked(document.getElementById("niivue").textContent);
    const script = document.createElement("script");
    script.src = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    await new Promise((done, fail) => {
      script.onload = done;
      script.onerror = () => fail(new Error("NiiVue could not be started"));
      document.head.append(script);
    });
    return window.niivue;
  }

  // The page holds the reconstruction, and how a series changes it in steps of its bytes.
  function decoded(change, reconstruction) {
    const start = new Uint8Array(reconstruction, HEADER);
    const steps = new Int16Array(change, HEADER);
    const file = new ArrayBuffer(HEADER + steps.length);
    new Uint8Array(file).set(new Uint8Array(change, 0, HEADER));
    const header = new DataView(file);
    header.setInt16(70, 2, true); // datatype: uint8
    header.setInt16(72, 8, true);
    header.setFloat32(116, new DataView(reconstruction).getFloat32(116, true), true); // intercept
    new Uint8Array(file, HEADER).set(steps.map((step, k) => start[k % start.length] + step));
    const most = steps.reduce((largest, step) => Math.max(largest, Math.abs(step)), 0);
    return { file, most: most * header.getFloat32(112, true) };
  }

  // NiiVue would cut the brightest and darkest voxels off; here two images compare.
  function range(file) {
    const header = new DataView(file);
    const start = header.getFloat32(116, true);
    return { cal_min: start, cal_max: start + 255 * header.getFloat32(112, true) };
  }

  async function image(file, name, options) {
    const volume = await niivue.NVImage.new(file, `${name}.nii`);
    return Object.assign(volume, options);
  }

  async function load(viewer, volumes) {
    while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[0]);
    for (const volume of volumes) viewer.addVolume(volume);
    viewer.updateGLVolume();
  }

  const attribute = () => subject.attributes[field.attribute.selectedIndex];
  const opacity = () => (field.overlay.checked ? field.opacity.value / 100 : 0);
  const digits = (value) => String(Number(Number(value).toPrecision(3)));

  async function show() {
    const { name, kinds, label } = attribute();
    const file = (kind) => subject.files[kind];
    const own = file("image") || file("original");
    const [map, change] = [file(`map_${name}`) || file(`uncertainty_${name}`), file(`change_${name}`)];
    const reconstruction = file("reconstruction") || own;
    const shown = [await image(own || reconstruction, "image", { colormap: "gray", ...range(own || reconstruction) })];
    if (map) {
      const options = { colormap: "evidence", opacity: opacity() };
      shown.push(await image(map, "map", { ...options, ...range(map) }));
    }
    const moved = change && decoded(change, reconstruction);
    // three scales would not fit below a narrow canvas, and the image's is on the left
    const grey = { colormap: "gray", colorbarVisible: !moved, ...range(reconstruction) };
    const drawn = [await image(moved ? moved.file : reconstruction, "decoded", grey)];
    if (moved) {
      const options = { colormap: "more", colormapNegative: "less", opacity: opacity() };
      const [low, high] = [0.05 * moved.most, moved.most || 1];
      const range = { cal_min: low, cal_max: high, cal_minNeg: -low, cal_maxNeg: -high };
      drawn.push(await image(change, "change", { ...options, ...range }));
    }
    field.view.disabled = drawn[0].hdr.dims[3] < 2; // an image has one plane
    if (field.view.disabled) field.view.value = "0";
    turn();
    await load(viewers[0], shown);
    await load(viewers[1], drawn);
    const { values } = attribute();
    const frames = drawn[0].nFrame4D || 1;
    field.value.max = frames - 1;
    field.value.disabled = frames < 2;
    field.value.value = values.length === frames ? nearest(values) : frames - 1;
    const read = `where ${label} is read. Dark to bright: little to much evidence${data.map_unit}`;
    const spread = "how uncertain the change is. Dark to bright: its standard deviation, in the image's unit";
    const what = kinds.includes("map") ? read : spread;
    captions[0].textContent = `${subject.id}${own ? "" : " (reconstruction)"}${map ? `, and ${what}` : `; no map of ${label} was written`}.`;
    step();
    viewers[0].createOnLocationChange(); // says where the crosshair is before it moves
  }

  const turn = () => viewers.forEach((viewer) => viewer.setSliceType(Number(field.view.value)));

  const nearest = (values) => {
    const own = attribute().read;
    if (own === null) return Math.floor(values.length / 2);
    return values.reduce((best, v, k) => (Math.abs(v - own) < Math.abs(values[best] - own) ? k : best), 0);
  };

  function step() {
    const { values, titles, unit, label, measured, read, kinds, name } = attribute();
    const moved = subject.files[`change_${name}`];
    const frame = Number(field.value.value);
    const frames = Number(field.value.max) + 1;
    for (const volume of viewers[1].volumes) viewers[1].setFrame4D(volume.id, frame);
    const counted = frames > 1 ? `${frame + 1} of ${frames}` : label;
    const value = values.length === frames ? `${digits(values[frame])} ${unit}`.trim() : titles[frame] || counted;
    field.asked.value = moved ? value : "no other was written";
    field.value.setAttribute("aria-valuetext", field.asked.value);
    const own = [["measured", measured], ["read", read]].filter(([, v]) => v !== null);
    const colours = (than) => `Red: brighter than ${than}, blue: darker.`;
    if (!moved) captions[1].textContent = subject.files.reconstruction ? "The reconstruction." : "The image itself.";
    else if (kinds.includes("traversal")) captions[1].textContent = `Decoded at ${label.replace(/ \([^)]*\)$/, "")} ${value}${own.length ? ` (this subject: ${own.map(([how, v]) => `${digits(v)} ${how}`).join(", ")})` : ""}. ${colours("at its own value")}`;
    else if (kinds.includes("counterfactual")) captions[1].textContent = `The counterfactual under ${label}. ${colours("under its own arm")}`;
    else captions[1].textContent = `Decoded, ${label}${value === label ? "" : `: ${value}`}. ${colours("the reconstruction")}`;
  }

  function fade() {
    field.shown.value = field.overlay.checked ? `${field.opacity.value} %` : "off";
    for (const viewer of viewers) if (viewer.volumes.length > 1) viewer.setOpacity(1, opacity());
  }

  async function choose() {
    subject = data.subjects[field.subject.selectedIndex];
    if (!subject.files) {
      const kinds = Object.entries(subject.volumes);
      const files = await Promise.all(kinds.map(([, packed]) => unpacked(packed)));
      subject.files = Object.fromEntries(kinds.map(([kind], k) => [kind, files[k]]));
    }
    const before = field.attribute.value;
    field.attribute.replaceChildren(...subject.attributes.map((a) => new Option(a.label, a.name)));
    if (subject.attributes.some((a) => a.name === before)) field.attribute.value = before;
    await show();
  }

  function located(location) {
    const [x, y, z] = [...location.mm].map((v) => (Math.round(10 * v) / 10 + 0).toFixed(1));
    const values = location.values.map((v) => `${v.name.replace(/\.nii.*$/, "")} ${digits(v.value)}`).join(", ");
    const grid = subject.coarser > 1 ? ` Shown at ${subject.grid_mm.join(" × ")} mm, ${subject.coarser} times coarser than the files.` : "";
    place.textContent = `Crosshair at ${x}, ${y}, ${z} mm (right, anterior, superior): ${values}.${grid}`;
  }

  // one change after the other: a slow one must not end after the next
  const queued = (action) => { pending = pending.then(action).catch(failed); };

  function failed(error) {
    root.querySelector(".nowebgl").textContent = `The 3D viewer does not run here (${error.message}); the planes below show the same subjects.`;
    root.querySelector(".nowebgl").hidden = false;
    root.querySelector(".stills").replaceChildren(
      ...[...document.querySelectorAll("figure.still")].map((still) => still.cloneNode(true)),
    );
    controls.hidden = root.querySelector(".canvases").hidden = true;
  }

  async function start() {
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("no WebGL 2");
    data = JSON.parse(root.querySelector(".volumes").textContent);
    niivue = await library();
    controls.hidden = root.querySelector(".canvases").hidden = false;
    viewers = [left, right].map(() => new niivue.Niivue({
      logLevel: "silent", loadingText: "", isColorbar: true, show3Dcrosshair: true,
      backColor: [0, 0, 0, 1], dragAndDropEnabled: false, multiplanarShowRender: 0, isNearestInterpolation: true,
      crosshairWidth: 0.7, crosshairWidthUnit: "mm", crosshairColor: [0.34, 0.71, 0.91, 1],
    }));
    for (const [k, canvas] of [left, right].entries()) {
      await viewers[k].attachToCanvas(canvas);
      for (const [name, scale] of Object.entries(data.colours)) viewers[k].addColormap(name, scale);
    }
    viewers[0].broadcastTo([viewers[1]], { "2d": true, "3d": true });
    viewers[1].broadcastTo([viewers[0]], { "2d": true, "3d": true });
    viewers[0].onLocationChange = located;
    field.subject.replaceChildren(...data.subjects.map((s) => new Option(s.why ? `${s.id} (${s.why})` : s.id)));
    field.subject.addEventListener("change", () => queued(choose));
    field.attribute.addEventListener("change", () => queued(show));
    field.value.addEventListener("input", () => queued(step));
    field.overlay.addEventListener("input", () => queued(fade));
    field.opacity.addEventListener("input", () => queued(fade));
    field.view.addEventListener("change", turn);
    controls.addEventListener("submit", (event) => event.preventDefault());
    await choose();
    fade();
    root.querySelector(".nowebgl").hidden = true;
    root.dataset.ready = "true"; // the tests wait for it
  }

  root.closest("section").addEventListener("shown", () => queued(start), { once: true });
})();
