// The loop over scales; the same as var_hf/onnx/runner.py.
//
// Letters: B images, R rows of the transformer (B, or 2B under guidance), T tokens of one scale,
// L tokens of all scales, V codes, F side of the latents, P side of the images.

import { uniform } from "./random.js";
import {
  drawToken,
  guidanceStrength,
  numGuidedScales,
  roundHalfEven,
  temperatureAt,
} from "./sampling.js";

const MOST_IMAGES = 8; // as the demo in Python offers
const CACHE_BYTES = 2 ** 29; // for keys and values of all images

/** The largest number of images of one request, by the memory of keys and values. */
export function mostImages(model) {
  const { num_hidden_layers: layers, hidden_size: width, num_tokens: tokens } = model;
  const bytes = 2 * 2 * 4 * layers * width * tokens; // guided; keys and values; float32
  return Math.max(1, Math.min(MOST_IMAGES, Math.floor(CACHE_BYTES / bytes)));
}

/** The first scale that a variation redraws; the coarser ones are kept. */
export function firstRedrawnScale(strength, numScales) {
  return numScales - roundHalfEven(strength * numScales);
}

/** For each of the L tokens whether a variation keeps it. */
export function keptByStrength(strength, sizes) {
  const first = firstRedrawnScale(strength, sizes.length);
  return sizes.flatMap((size, scale) => Array(size * size).fill(scale < first));
}

/**
 * For each of the L tokens whether an edit of painted cells keeps it. A token is kept where the
 * bilinear average of what is kept exceeds one half; the 1 x 1 map is always kept.
 * Source: the release's editing notebook, as VARInpaintPipeline.
 * @param {boolean[]} painted The cells of the finest scale, F * F, that are to be redrawn.
 * @param {number[]} sizes Side of each token map.
 */
export function keptByMask(painted, sizes) {
  const kept = painted.map((one) => (one ? 0 : 1));
  return sizes.flatMap((size) => {
    const share = resample(kept, sizes[sizes.length - 1], size);
    return Array.from(share, (value) => size * size <= 3 || value > 0.5);
  });
}

/** Resample a square map bilinearly, with the centres of cells as torch places them. */
export function resample(values, from, to) {
  const result = new Float64Array(to * to);
  const places = Array.from({ length: to }, (_, index) => {
    const place = Math.max(0, ((index + 0.5) * from) / to - 0.5);
    const low = Math.min(Math.floor(place), from - 1);
    return [low, Math.min(low + 1, from - 1), place - low];
  });
  places.forEach(([top, bottom, y], row) =>
    places.forEach(([left, right, x], column) => {
      const above = values[top * from + left] * (1 - x) + values[top * from + right] * x;
      const below = values[bottom * from + left] * (1 - x) + values[bottom * from + right] * x;
      result[row * to + column] = above * (1 - y) + below * y;
    }),
  );
  return result;
}

/**
 * Draw images scale by scale.
 * @param {Graphs} graphs The model.
 * @param {object} request `classIds` (B; num_classes is the null class), `seeds` (B), `settings`
 *   as in metadata.json, and for an edit `kept`: `tokens` and `keep`, each of length L.
 * @yields {{scale: number, tokens: number[], latents: Float32Array}} Tokens are (B, T).
 */
export async function* generate(graphs, request) {
  const { model } = graphs.metadata;
  const { classIds, seeds, settings, kept } = request;
  const sizes = model.token_map_sizes;
  const [count, side] = [classIds.length, sizes[sizes.length - 1]];
  const isNull = classIds.every((id) => id === model.num_classes);
  const guided = isNull ? 0 : numGuidedScales(settings, sizes.length);
  const rows = guided ? [...classIds, ...Array(count).fill(model.num_classes)] : classIds;
  let condition = (await graphs.run("condition", { class_labels: [rows, [rows.length]] })).data;
  let rowCount = rows.length;
  let past = emptyCache(model, rowCount, graphs);
  let latents = new Float32Array(count * model.latent_channels * side * side);
  const latentShape = [count, model.latent_channels, side, side];
  let start = 0;
  for (let scale = 0; scale < sizes.length; scale++) {
    if (scale === guided && rowCount > count) {
      condition = condition.slice(0, condition.length / 2);
      past = await halveRows(past, graphs);
      rowCount = count;
    }
    const length = sizes[scale] ** 2;
    const positions = Array.from({ length }, (_, index) => start + index);
    const outputs = await graphs.runAll("transformer", {
      condition: [condition, [rowCount, condition.length / rowCount / model.hidden_size, model.hidden_size]],
      latents: [repeat(latents, rowCount / count), [rowCount, ...latentShape.slice(1)]],
      positions: [positions, [length]],
      ...past,
    });
    past = takeCache(outputs, past);
    const tokens = drawScale(outputs.logits.data, {
      rows: rowCount, count, scale, positions, seeds, settings, sizes, codes: model.vocab_size,
    });
    if (kept) replaceKept(tokens, positions, kept);
    const added = await graphs.run("latents", {
      latents: [latents, latentShape],
      tokens: [tokens, [count, length]],
      positions: [positions, [length]],
    });
    latents = added.data;
    yield { scale, tokens, latents };
    start += length;
  }
}

/** Tokens (B, T) of one scale from its logits (R, T, V). */
function drawScale(logits, { rows, count, scale, positions, seeds, settings, sizes, codes }) {
  if (!Number.isFinite(logits[0]) || logits.some((value) => !Number.isFinite(value))) {
    throw new Error(`The logits of scale ${scale + 1} are not finite: export the model in float32.`);
  }
  const strength = rows > count ? guidanceStrength(settings, scale, sizes.length) : 0;
  const temperature = temperatureAt(settings, scale);
  const unconditional = count * positions.length * codes;
  const guidedLogits = new Float64Array(codes);
  return seeds.flatMap((seed, image) =>
    positions.map((position, index) => {
      const at = (image * positions.length + index) * codes;
      for (let code = 0; code < codes; code++) {
        let value = logits[at + code];
        if (rows > count) {
          value = (1 + strength) * value - strength * logits[unconditional + at + code];
        }
        guidedLogits[code] = temperature === 1 ? value : value / temperature;
      }
      return drawToken(guidedLogits, settings.top_k, settings.top_p, uniform(seed, 0, position));
    }),
  );
}

function replaceKept(tokens, positions, { tokens: given, keep }) {
  tokens.forEach((_, index) => {
    const position = positions[index % positions.length];
    if (keep[position]) tokens[index] = given[position];
  });
}

/**
 * Images of latents.
 * @returns {Promise<Uint8ClampedArray[]>} For each image its P * P pixels, RGBA.
 */
export async function decode(graphs, latents) {
  const { model } = graphs.metadata;
  const side = model.token_map_sizes[model.token_map_sizes.length - 1];
  const shape = [1, model.latent_channels, side, side];
  const size = shape.reduce((a, b) => a * b);
  const images = [];
  for (let at = 0; at < latents.length; at += size) {
    const one = latents.slice(at, at + size);
    images.push(toPixels((await graphs.run("decoder", { latents: [one, shape] })).data));
  }
  return images;
}

/** Tokens (L) of an image of P * P pixels, RGBA. */
export async function encode(graphs, pixels) {
  const size = graphs.metadata.model.image_size;
  const image = new Float32Array(3 * size * size);
  for (let pixel = 0; pixel < size * size; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = Math.fround(pixels[4 * pixel + channel] / 255);
      image[channel * size * size + pixel] = Math.fround(value * 2) - 1;
    }
  }
  const { data } = await graphs.run("encoder", { images: [image, [1, 3, size, size]] });
  return Array.from(data, Number);
}

/** Numbers (3, P, P) in [-1, 1] as P * P pixels, RGBA; rounded in float32, as numpy does. */
function toPixels(values) {
  const count = values.length / 3;
  const pixels = new Uint8ClampedArray(4 * count).fill(255);
  for (let channel = 0; channel < 3; channel++) {
    for (let pixel = 0; pixel < count; pixel++) {
      const share = Math.fround(values[channel * count + pixel] / 2 + 0.5);
      pixels[4 * pixel + channel] = roundHalfEven(Math.fround(Math.min(1, Math.max(0, share)) * 255));
    }
  }
  return pixels;
}

/**
 * Put an edit into the image it was made from. The seam is half a token wide and lies on kept
 * tokens, whose pixels resemble those of the image.
 */
export function pasteBack(drawn, original, painted, model) {
  const sizes = model.token_map_sizes;
  const redrawn = painted.map((one) => (one ? 1 : 0));
  const share = resample(redrawn, sizes[sizes.length - 1], model.image_size);
  return drawn.map((value, index) => {
    const opacity = Math.min(1, 2 * share[index >> 2]);
    return value * opacity + original[index] * (1 - opacity);
  });
}

// Keys and values

function emptyCache(model, rows, graphs) {
  const shape = [rows, model.num_attention_heads, 0, model.head_dim];
  const past = {};
  for (let layer = 0; layer < model.num_hidden_layers; layer++) {
    for (const part of ["key", "value"]) {
      past[`past.${layer}.${part}`] = graphs.tensor(new Float32Array(0), shape);
    }
  }
  return past;
}

function takeCache(outputs, before) {
  Object.values(before).forEach((tensor) => tensor.dispose());
  return Object.fromEntries(
    Object.keys(before).map((name) => [name, outputs[name.replace("past", "present")]]),
  );
}

async function halveRows(past, graphs) {
  const halves = {};
  for (const [name, tensor] of Object.entries(past)) {
    const data = await tensor.getData();
    const [rows, ...shape] = tensor.dims;
    halves[name] = graphs.tensor(data.slice(0, data.length / 2), [rows / 2, ...shape]);
    tensor.dispose();
  }
  return halves;
}

function repeat(values, times) {
  if (times === 1) return values;
  const all = new Float32Array(values.length * times);
  for (let index = 0; index < times; index++) all.set(values, index * values.length);
  return all;
}
