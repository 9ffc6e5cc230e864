// Random numbers of var_hf.onnx: Philox4x32-10 (J. K. Salmon et al., "Parallel random numbers: as
// easy as 1, 2, 3", SC 2011). A number is addressed by seed, image and position, not drawn in turn.

export const LARGEST_SEED = Number.MAX_SAFE_INTEGER; // 2^53 - 1

const WORD = 2 ** 32;

/** The upper 32 bits of the product of two 32-bit words. */
function high(a, b) {
  const [a0, a1, b0, b1] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = a1 * b0 + ((a0 * b0) >>> 16); // below 2^32
  const other = a0 * b1 + (middle & 0xffff);
  return (a1 * b1 + (middle >>> 16) + (other >>> 16)) >>> 0;
}

/**
 * Four random words.
 * @param {number[]} counter Four 32-bit words.
 * @param {number[]} key Two 32-bit words.
 * @returns {number[]} Four 32-bit words.
 */
export function philox4x32(counter, key) {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    [c0, c1, c2, c3] = [
      (high(0xcd9e8d57, c2) ^ c1 ^ k0) >>> 0,
      Math.imul(0xcd9e8d57, c2) >>> 0,
      (high(0xd2511f53, c0) ^ c3 ^ k1) >>> 0,
      Math.imul(0xd2511f53, c0) >>> 0,
    ];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/**
 * The random number of a token, in [0, 1), with 53 random bits.
 * @param {number} seed Whole number in [0, 2^53).
 * @param {number} image Number of the image among those that share the seed.
 * @param {number} position Number of the token among those of all scales.
 */
export function uniform(seed, image, position) {
  const words = philox4x32([position, image, 0, 0], [seed % WORD, Math.floor(seed / WORD)]);
  return ((words[0] >>> 5) * 2 ** 26 + (words[1] >>> 6)) / 2 ** 53;
}
