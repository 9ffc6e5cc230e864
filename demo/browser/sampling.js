// From logits to tokens, in float64 and in the order of operations of var_hf/onnx/drawing.py, so
// that both give the same token for the same logits.

/** The scales in [start, stop) are guided; see guided_scales in var_hf/sampling_settings.py. */
export function guidedRange(settings, numScales) {
  const given = settings.guided_scales;
  return given === null ? [0, numScales] : Array.isArray(given) ? given : [0, given];
}

/** Number of scales, from the coarsest, for which unconditional logits are computed. */
export function numGuidedScales(settings, numScales) {
  const [start, stop] = guidedRange(settings, numScales);
  return settings.guidance_scale > 1 && stop > start ? stop : 0;
}

/** Strength t of the guidance at a scale: logits are (1 + t) * conditional - t * unconditional. */
export function guidanceStrength(settings, scale, numScales) {
  const [start, stop] = guidedRange(settings, numScales);
  if (scale < start || scale >= stop) return 0;
  const share = settings.guidance_schedule === "ramp" ? scale / (numScales - 1) : 1;
  return (settings.guidance_scale - 1) * share;
}

/** The temperature of a scale. */
export function temperatureAt(settings, scale) {
  const { temperature } = settings;
  return Array.isArray(temperature) ? temperature[scale] : temperature;
}

/**
 * Draw one token.
 * @param {Float64Array} logits Guided logits of the codes, divided by the temperature.
 * @param {number} topK Draw from the k likeliest codes; 0 is all.
 * @param {number} topP Draw from the likeliest codes that reach this probability; 1 is all.
 * @param {number} random Random number in [0, 1).
 * @returns {number} The code.
 */
export function drawToken(logits, topK, topP, random) {
  const ascending = logits.slice().sort();
  const largest = ascending[ascending.length - 1];
  let smallest = topK > 0 && topK < logits.length ? ascending[logits.length - topK] : -Infinity;
  if (topP < 1) smallest = nucleus(ascending, smallest, largest, topP);
  const sums = new Float64Array(logits.length);
  let [total, last] = [0, 0];
  logits.forEach((value, code) => {
    const weight = value >= smallest ? Math.exp(value - largest) : 0;
    if (weight > 0) last = code;
    total += weight;
    sums[code] = total;
  });
  const wanted = random * total;
  const token = sums.findIndex((sum) => sum > wanted);
  return token < 0 ? last : token; // where the product was rounded up to the whole sum
}

/** The smallest logit that top-p keeps. The largest always stays. */
function nucleus(ascending, smallest, largest, topP) {
  const first = ascending.findIndex((value) => value >= smallest);
  const sums = new Float64Array(ascending.length);
  let total = 0;
  for (let i = first; i < ascending.length; i++) {
    total += Math.exp(ascending[i] - largest);
    sums[i] = total;
  }
  const removed = (1 - topP) * total;
  for (let i = first; i < ascending.length - 1; i++) if (sums[i] > removed) return ascending[i];
  return largest;
}

/** Round to the nearest whole number, halves to the even one, as Python does. */
export function roundHalfEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}
