// The page: controls, images and messages. The model runs in worker.js.

import { className, ClassList, findClass } from "./classes.js";
import { readUpload, Sheet } from "./editor.js";
import { inUnits } from "./files.js";
import { pythonLines } from "./python.js";
import { LARGEST_SEED } from "./random.js";
import { firstRedrawnScale } from "./runner.js";

const FAVOURITES = ["pizza", "octopus", "sunflower", "fox", "rocket", "strawberry", "penguin", "doughnut"];
const NUM_EXAMPLES = 8;
const LARGEST_FRESH_SEED = 2 ** 31; // short enough to be copied by hand

const at = (id) => document.getElementById(id);
const classes = new ClassList(at("class"), at("classes"));
const sheet = new Sheet(at("sheet"));

let worker = null;
let metadata = null;
let most = 1; // images of a request
let note = ""; // on the backend
let drawing = null; // the request that the worker answers
let lastId = 0;
let drawn = null; // the last request, with `images` by scale
let selected = 0; // the image whose scales are shown

// Start

function start() {
  if (!window.isSecureContext) {
    return loadingFailed(
      "Browsers check and store files over https and on this machine alone. Open this page under " +
        "https, or under http://localhost.",
    );
  }
  if (typeof WebAssembly !== "object") {
    return loadingFailed("This browser has no WebAssembly. Use a newer one.");
  }
  navigator.serviceWorker?.register("sw.js").catch(() => {}); // private windows may have none
  const chosen = new URLSearchParams(location.hash.slice(1)).get("backend");
  if (chosen === "webgpu") at("backend").querySelector("[value=webgpu]").checked = true;
  startWorker();
}

function startWorker() {
  worker?.terminate();
  metadata = null;
  setBusy();
  const backend = chosenOf("backend");
  at("loading").hidden = false;
  at("loading-text").textContent = "Loading the model.";
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => answers[data.type](data);
  worker.onerror = (event) => {
    event.preventDefault();
    loadingFailed(`The model cannot run in this browser: ${event.message || "worker.js failed"}.`);
  };
  worker.postMessage({ type: "load", backend });
}

const answers = {
  progress({ done, total }) {
    at("progress").value = done / total;
    at("loading-text").textContent = `Loading the model: ${inUnits(done)} of ${inUnits(total)}.`;
  },
  retry(answer) {
    at("backend").querySelector("[value=wasm]").checked = true;
    startWorker();
    note = `${answer.note} The page uses WebAssembly.`;
  },
  ready(answer) {
    metadata = answer.metadata;
    most = answer.most;
    note = answer.note || note;
    at("loading").hidden = true;
    at("backend").querySelector(`[value=${answer.backend}]`).checked = true;
    at("backend-hint").textContent =
      note || "WebGPU needs a larger download and pays for larger models alone.";
    if (note) say(note);
    setUpControls();
    setBusy();
    showFacts(["Ready", "choose a class and draw"]);
    document.body.dataset.state = "ready";
    readAddress();
  },
  stored({ complete }) {
    document.body.dataset.stored = String(complete);
    if (complete && !drawn && !drawing) {
      showFacts(["Ready", "works without a network from now on"]);
    }
  },
  scale({ id, scale, tokens, images }) {
    if (drawing?.id !== id) return;
    if (scale === 0) {
      drawn = { ...drawing, images: [], tokens: [] };
      selected = Math.min(selected, images.length - 1);
      showSnippet();
    }
    drawn.images.push(images);
    drawn.tokens.push(tokens);
    showImages();
    showStrip();
    const sizes = metadata.model.token_map_sizes;
    showFacts(["Drawing", `scale ${scale + 1} of ${sizes.length}`]);
  },
  done({ id, seconds, stopped }) {
    if (drawing?.id !== id) return;
    drawing = null;
    setBusy();
    const { num_tokens: tokens, token_map_sizes: sizes } = metadata.model;
    const first = stopped ? "Stopped" : drawn.seeds.length > 1 ? `${drawn.seeds.length} images` : "Done";
    showFacts([
      first,
      `${seconds.toFixed(2)} s`,
      `seed ${drawn.seeds[0]}`,
      `${tokens} tokens in ${sizes.length} passes`,
    ]);
    say(`${first}: ${className(drawn.classId, metadata)}, seed ${drawn.seeds[0]}.`);
  },
  failed({ text }) {
    if (!metadata) return loadingFailed(text);
    drawing = null;
    setBusy();
    complain(text);
    showFacts(["Not drawn"]);
  },
};

function loadingFailed(text) {
  at("loading").hidden = true;
  at("nothing").hidden = false;
  at("nothing").textContent = "The model is not loaded.";
  document.body.dataset.state = "failed";
  showFacts(["Not loaded"]);
  complain(text);
}

function setUpControls() {
  const { model, sampling } = metadata;
  const facts = [
    metadata.name,
    `${model.image_size} × ${model.image_size} pixels`,
    `${model.num_classes.toLocaleString("en")} classes`,
    `${model.token_map_sizes.length} scales`,
  ];
  at("model").replaceChildren(...facts.map((text) => element("span", {}, text)));
  const grids = model.token_map_sizes.map(grid);
  at("lead").textContent =
    "This page runs the model in your browser. It starts with one token for the whole image and " +
    `continues with finer and finer grids, from ${grids[0]} to ${grids.at(-1)}. Choose a class and watch.`;
  at("about-model").textContent =
    `The model on this page, ${metadata.name}, has ${grids.length} scales: ${grids.join(", ")}. ` +
    `Its weights are stored in ${metadata.dtype}.`;
  const choices = Array.from({ length: model.num_classes }, (_, id) => ({
    id,
    name: className(id, metadata),
  }));
  choices.sort((a, b) => a.name.localeCompare(b.name, "en"));
  const previous = classes.value;
  classes.fill([...choices, { id: model.num_classes, name: "no class" }]);
  if (previous !== null) classes.choose(previous);
  at("chips").replaceChildren(...exampleClasses(choices).map(chip));
  at("count").max = most;
  if (document.body.dataset.state !== "ready") at("guidance").value = sampling.guidance_scale;
  at("seed").max = LARGEST_SEED - most + 1;
  if (!sheet.pixels) sheet.setUp(model);
  showSettings();
  if (!drawn) showStrip();
}

function exampleClasses(choices) {
  const favourites = FAVOURITES.flatMap((name) => choices.filter((one) => one.name === name));
  const step = Math.max(1, Math.floor(choices.length / NUM_EXAMPLES));
  const others = choices.filter((one, index) => index % step === 0 && !favourites.includes(one));
  return [...favourites, ...others].slice(0, NUM_EXAMPLES);
}

function chip({ id, name }) {
  const button = element("button", { type: "button" }, name);
  button.addEventListener("click", () => {
    classes.choose(id);
    draw();
  });
  return button;
}

// Requests

function draw() {
  if (!metadata || drawing) return;
  complain("");
  const editing = chosenOf("mode") === "edit";
  if (editing && !sheet.pixels) return complain("There is no image to edit. Upload one, or take the drawn one.");
  if (at("fresh").checked) at("seed").value = Math.floor(Math.random() * LARGEST_FRESH_SEED);
  const seed = Number(at("seed").value);
  if (at("seed").value.trim() === "" || !Number.isInteger(seed) || seed < 0 || seed > Number(at("seed").max)) {
    return complain(`The seed must be a whole number from 0 to ${at("seed").max}.`);
  }
  const painting = editing && chosenOf("kind") === "paint";
  if (painting && !sheet.painted.includes(true)) {
    return complain("Nothing is painted. Paint over the part to redraw.");
  }
  const count = Math.min(Number(at("count").value), most);
  const edit = editing && {
    pixels: sheet.pixels.slice(),
    painted: painting ? [...sheet.painted] : null,
    strength: Number(at("strength").value),
  };
  const request = {
    classId: classes.value,
    seeds: Array.from({ length: count }, (_, index) => seed + index),
    guidanceScale: Number(at("guidance").value),
    edit: edit || null,
  };
  drawing = { id: ++lastId, ...request };
  setBusy();
  showFacts(["Drawing"]);
  say(`Drawing ${className(request.classId, metadata)}.`);
  worker.postMessage({ type: "draw", id: drawing.id, request });
  if (!editing) writeAddress(drawing);
}

/** Disables the controls that a state of the page does not allow. */
function setBusy() {
  const idle = Boolean(metadata) && !drawing;
  at("draw").disabled = at("random").disabled = !idle;
  at("stop").disabled = !drawing;
  for (const button of at("chips").children) button.disabled = !idle;
  const hasImages = Boolean(drawn?.images.length) && !drawing;
  at("to-edit").disabled = at("save").disabled = at("take").disabled = !hasImages;
  document.body.dataset.drawing = String(Boolean(drawing));
}

// The address: #class=fox&seed=3&guidance=2&images=4

function writeAddress({ classId, seeds, guidanceScale }) {
  const values = new URLSearchParams({ class: className(classId, metadata), seed: seeds[0] });
  if (findClass(className(classId, metadata), metadata).length !== 1) values.set("class", classId);
  if (guidanceScale !== metadata.sampling.guidance_scale) values.set("guidance", guidanceScale);
  if (seeds.length > 1) values.set("images", seeds.length);
  history.replaceState(null, "", `#${values}`);
}

/** Takes the settings of the address, and draws if it names a class. */
function readAddress() {
  if (!metadata || drawing) return;
  const values = new URLSearchParams(location.hash.slice(1));
  const problem = takeClass(values) || takeNumbers(values);
  showSettings();
  if (problem) return complain(problem);
  if (values.has("class")) draw();
}

function takeClass(values) {
  if (!values.has("class")) return "";
  const wanted = values.get("class");
  if (wanted === className(metadata.model.num_classes, metadata)) {
    classes.choose(metadata.model.num_classes);
    return "";
  }
  const found = findClass(wanted, metadata);
  if (found.length > 1) {
    return `The address names the class “${wanted}”, which stands for the classes ${found.join(", ")}. Use a number.`;
  }
  if (!found.length) {
    return `The address names the class “${wanted}”, which this model does not know. Choose one from the list.`;
  }
  classes.choose(found[0]);
  return "";
}

function takeNumbers(values) {
  const rules = [
    ["seed", at("seed"), "a whole number", Number.isInteger],
    ["images", at("count"), "a whole number", Number.isInteger],
    ["guidance", at("guidance"), "a number", Number.isFinite],
  ];
  for (const [name, input, kind, isValid] of rules) {
    if (!values.has(name)) continue;
    const text = values.get(name);
    const value = text.trim() ? Number(text) : NaN;
    if (!isValid(value) || value < Number(input.min) || value > Number(input.max)) {
      return `The address has ${name}=${text}, and ${name} must be ${kind} from ${input.min} to ${input.max}.`;
    }
    input.value = value;
    if (name === "seed") at("fresh").checked = false;
  }
  return "";
}

// Images

function showImages() {
  at("nothing").hidden = true;
  const images = drawn.images.at(-1);
  const name = className(drawn.classId, metadata);
  const list = at("images");
  if (list.children.length !== images.length) {
    list.replaceChildren(...images.map((_, index) => imageButton(index)));
  }
  [...list.children].forEach((item, index) => {
    paint(item.querySelector("canvas"), images[index]);
    const button = item.firstChild;
    button.setAttribute("aria-label", `${name}, seed ${drawn.seeds[index]}`);
    button.setAttribute("aria-pressed", String(index === selected));
  });
}

function imageButton(index) {
  const size = metadata.model.image_size;
  const button = element("button", { type: "button" });
  button.append(element("canvas", { width: size, height: size }));
  button.addEventListener("click", () => {
    selected = index;
    showImages();
    showStrip();
  });
  const item = element("li");
  item.append(button);
  return item;
}

function showStrip() {
  const sizes = metadata.model.token_map_sizes;
  at("strip").replaceChildren(
    ...sizes.map((size, scale) => {
      const image = drawn?.images[scale]?.[selected];
      const side = metadata.model.image_size;
      const label = `scale ${scale + 1} of ${sizes.length}, ${size} by ${size} tokens`;
      const frame = image
        ? element("canvas", { width: side, height: side, role: "img", "aria-label": label })
        : element("span", { class: "place" });
      if (image) paint(frame, image);
      const figure = element("figure");
      figure.append(frame, element("figcaption", {}, grid(size)));
      const item = element("li");
      item.append(figure);
      return item;
    }),
  );
}

function paint(canvas, pixels) {
  const side = metadata.model.image_size;
  canvas.getContext("2d").putImageData(new ImageData(pixels, side), 0, 0);
}

function pngOf(pixels) {
  const side = metadata.model.image_size;
  const canvas = element("canvas", { width: side, height: side });
  paint(canvas, pixels);
  return canvas.toDataURL("image/png");
}

function save() {
  const name = className(drawn.classId, metadata).replaceAll(/[^\w-]+/g, "-");
  const link = element("a", {
    href: pngOf(drawn.images.at(-1)[selected]),
    download: `${name}-${drawn.seeds[selected]}.png`,
  });
  link.click();
}

function takeDrawn() {
  sheet.setImage(drawn.images.at(-1)[selected].slice());
  at("no-image").hidden = true;
}

// Texts

function showSnippet() {
  const { code, hint } = pythonLines(drawn, metadata);
  at("code").textContent = code;
  at("code").parentElement.hidden = at("copy").hidden = !code;
  at("code-hint").textContent = `${hint} `;
  if (code && drawn.edit) {
    const link = { href: pngOf(drawn.edit.pixels), download: "image.png" };
    at("code-hint").append(element("a", link, "Save image.png"));
  }
}

function showSettings() {
  at("count-value").textContent = at("count").value;
  at("guidance-value").textContent = at("guidance").value;
  at("guidance-hint").textContent = guidanceWords(Number(at("guidance").value));
  const sizes = metadata?.model.token_map_sizes ?? [];
  const strength = Number(at("strength").value);
  const kept = firstRedrawnScale(strength, sizes.length);
  at("strength-value").textContent = `${strength} · ${sizes.length - kept} of ${sizes.length} scales`;
}

/** As guidance_words in demo/handlers.py. */
function guidanceWords(scale) {
  const words = [
    [1, "off: all of the model’s variety, half the work"],
    [1.75, "light: varied, not always typical"],
    [3, "balanced"],
    [6, "strong: typical and much alike"],
    [Infinity, "extreme: hard colours, little variety"],
  ].find(([limit]) => scale <= limit)[1];
  return `${words} · the original’s cfg ${Number(Math.max(0, scale - 1).toFixed(2))}`;
}

function showFacts(parts) {
  at("facts").replaceChildren(
    ...parts.flatMap((part, index) => [...(index ? [" · "] : []), element("span", {}, part)]),
  );
}

const say = (text) => (at("status").textContent = text);

function complain(text) {
  at("problem").textContent = text;
}

function grid(size) {
  return `${size}\u202f×\u202f${size}`;
}

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  made.textContent = text;
  return made;
}

function chosenOf(name) {
  return document.querySelector(`input[name=${name}]:checked`).value;
}

function showMode() {
  const editing = chosenOf("mode") === "edit";
  const painting = chosenOf("kind") === "paint";
  at("editor").hidden = !editing;
  at("examples").hidden = editing;
  at("draw").textContent = editing ? "Redraw" : "Draw";
  at("of-vary").hidden = painting;
  at("of-paint").hidden = at("clear").hidden = !painting;
  if (sheet.cells) sheet.setPainting(painting);
}

function setMode(mode) {
  at("mode").querySelector(`[value=${mode}]`).checked = true;
  showMode();
}

// Events

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
at("random").addEventListener("click", () => {
  classes.choose(Math.floor(Math.random() * metadata.model.num_classes));
  draw();
});
at("stop").addEventListener("click", () => worker.postMessage({ type: "stop" }));
at("save").addEventListener("click", save);
at("to-edit").addEventListener("click", () => {
  takeDrawn();
  setMode("edit");
  at("editor").scrollIntoView({ block: "nearest" });
  at("sheet").focus({ preventScroll: true });
});
at("take").addEventListener("click", takeDrawn);
at("clear").addEventListener("click", () => sheet.clear());
at("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(at("code").textContent);
  say("Copied.");
});
at("upload").addEventListener("change", async ({ target }) => {
  const [file] = target.files;
  target.value = ""; // so that the same file can be chosen again
  if (!file || !metadata) return;
  try {
    sheet.setImage(await readUpload(file, metadata.model.image_size));
    at("no-image").hidden = true;
    complain("");
    say(`${file.name} is loaded.`);
  } catch (error) {
    complain(error.message);
  }
});
at("mode").addEventListener("change", showMode);
at("kind").addEventListener("change", showMode);
at("backend").addEventListener("change", () => {
  if (drawing) worker.postMessage({ type: "stop" });
  drawing = null;
  note = "";
  startWorker();
});
for (const id of ["count", "guidance", "strength"]) at(id).addEventListener("input", showSettings);
at("seed").addEventListener("input", () => (at("fresh").checked = false));
window.addEventListener("hashchange", readAddress);

start();
