// Loads the model and draws, off the page's thread.
//
// Messages in: load {backend}, draw {id, request}, stop.
// Messages out: progress {done, total}, ready {metadata, backend, note}, stored {complete},
// scale {id, scale, tokens, images}, done {id, seconds, stopped}, failed {id, text}.

import { checkMetadata, readFile, readJson, removeOthers } from "./files.js";
import { binaryOf, Graphs, loadRuntime } from "./graphs.js";
import { LARGEST_SEED } from "./random.js";
import {
  decode,
  encode,
  generate,
  keptByMask,
  keptByStrength,
  mostImages,
  pasteBack,
} from "./runner.js";

const NEEDED_FIRST = ["condition", "transformer", "latents", "decoder"];
const ALL = [...NEEDED_FIRST, "encoder"];

let graphs = null;
let loading = null; // of the encoder
let stopped = false;

const post = (type, content = {}) => self.postMessage({ type, ...content });

/** Loads runtime and model. The encoder, which only edits need, follows in the background. */
async function load({ backend }) {
  const [page, metadata] = await Promise.all([readJson("page.json"), readJson("model/metadata.json")]);
  checkMetadata(metadata, ALL);
  const [chosen, note] = await chooseBackend(backend);
  const binary = `runtime/${binaryOf(chosen)}`;
  const modelFile = (name) => `model/${metadata.graphs[name]}`;
  const files = Object.fromEntries([
    [binary, page.runtime.files[binaryOf(chosen)]],
    ...ALL.map((name) => [modelFile(name), metadata.files[metadata.graphs[name]]]),
  ]);
  const first = [binary, ...NEEDED_FIRST.map(modelFile)];
  const total = first.reduce((sum, path) => sum + files[path].size, 0);
  let done = 0;
  const read = (path) =>
    readFile(path, files[path], (bytes) => post("progress", { done: (done += bytes), total }));
  const contents = await Promise.all(first.map(read));
  try {
    await createGraphs(chosen, metadata, contents);
  } catch (error) {
    if (chosen === "wasm") throw error;
    post("retry", { note: `WebGPU failed (${error.message}).` });
    return;
  }
  post("ready", { metadata, backend: chosen, note, most: mostImages(metadata.model) });
  loading = readFile(modelFile("encoder"), files[modelFile("encoder")], () => {});
  await loading;
  post("stored", { complete: await removeOthers(files) });
}

async function createGraphs(backend, metadata, [binary, ...contents]) {
  const ort = await loadRuntime(backend, binary);
  const created = new Graphs(ort, metadata, backend);
  for (const [index, name] of NEEDED_FIRST.entries()) await created.add(name, contents[index]);
  if (backend === "webgpu") {
    // A device may refuse a graph only when it runs.
    const { model } = metadata;
    const request = { classIds: [0], seeds: [0], settings: metadata.sampling };
    for await (const { latents } of generate(created, request)) {
      if (latents.length === 0) throw new Error(`no latents for ${model.num_classes} classes`);
    }
  }
  graphs = created;
}

async function chooseBackend(wanted) {
  if (wanted !== "webgpu") return ["wasm", ""];
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (adapter) return ["webgpu", ""];
  return ["wasm", "WebGPU is not available in this browser, so the page uses WebAssembly."];
}

async function draw({ id, request }) {
  stopped = false;
  const { metadata } = graphs;
  const { model } = metadata;
  const { classId, seeds, edit } = request;
  check(request);
  const started = performance.now();
  let kept;
  if (edit) {
    const keep = edit.painted
      ? keptByMask(edit.painted, model.token_map_sizes)
      : keptByStrength(edit.strength, model.token_map_sizes);
    await loadEncoder();
    kept = { tokens: await encode(graphs, edit.pixels), keep };
  }
  const settings = { ...metadata.sampling, guidance_scale: request.guidanceScale };
  const classIds = seeds.map(() => classId);
  for await (const { scale, tokens, latents } of generate(graphs, { classIds, seeds, settings, kept })) {
    let images = await decode(graphs, latents);
    if (edit?.painted) {
      images = images.map((image) => pasteBack(image, edit.pixels, edit.painted, model));
    }
    post("scale", { id, scale, tokens, images });
    await new Promise((resume) => setTimeout(resume)); // lets a stop come in
    if (stopped) break;
  }
  post("done", { id, seconds: (performance.now() - started) / 1000, stopped });
}

/** The page bounds its controls; requests are bounded here. */
function check({ classId, seeds, guidanceScale }) {
  const { model } = graphs.metadata;
  const most = mostImages(model);
  if (!(seeds.length >= 1 && seeds.length <= most)) {
    throw new Error(`The number of images must lie between 1 and ${most}. Got ${seeds.length}.`);
  }
  if (!seeds.every((seed) => Number.isInteger(seed) && seed >= 0 && seed <= LARGEST_SEED)) {
    throw new Error(`A seed must be a whole number from 0 to ${LARGEST_SEED}.`);
  }
  if (!(Number.isInteger(classId) && classId >= 0 && classId <= model.num_classes)) {
    throw new Error(`A class must be a number from 0 to ${model.num_classes}. Got ${classId}.`);
  }
  if (!(guidanceScale >= 1 && guidanceScale <= 100)) {
    throw new Error(`Guidance must lie between 1 and 100. Got ${guidanceScale}.`);
  }
}

async function loadEncoder() {
  if (!graphs.sessions.encoder) await graphs.add("encoder", await loading);
}

const actions = { load, draw, stop: async () => { stopped = true; } };

self.onmessage = async ({ data }) => {
  try {
    await actions[data.type](data);
  } catch (error) {
    post("failed", { id: data.id, text: error.message || String(error) });
  }
};
