// Downloads of the page's folder: checked by size and SHA-256, and stored for use without a network.

const AGAIN = "Reload the page, or copy its folder to the server again.";
const LARGEST_FILE = 2 ** 31 - 1; // of a protobuf message
const LARGEST_MODEL = 2 ** 32; // that WebAssembly addresses
const FORMAT = "var-hf-onnx";
const FORMAT_VERSION = 1;

/** The address of a file in the page's folder. */
export const folderFile = (path) => new URL(path, import.meta.url).href;

/** The cache that the service worker uses as well; one for each folder of a server. */
const openCache = () => caches.open(`var-hf ${new URL("./", import.meta.url).pathname}`);

/** The address of a stored file names its content, so that a new version is another entry. */
const storedAs = (path, entry) => folderFile(`${path}?sha256=${entry.sha256}`);

/** Reads a JSON file of the folder. */
export async function readJson(path) {
  const response = await request(path);
  try {
    return await response.json();
  } catch {
    throw new Error(`${path} is damaged: it is no JSON. ${AGAIN}`);
  }
}

/** Raises an error unless metadata describe a model that this page can run. */
export function checkMetadata(metadata, graphNames) {
  if (metadata?.format !== FORMAT) {
    throw new Error(`model/metadata.json does not describe a model of ${FORMAT}. ${AGAIN}`);
  }
  if (metadata.format_version !== FORMAT_VERSION) {
    throw new Error(
      `The model has the format version ${metadata.format_version}, and this page reads ` +
        `${FORMAT_VERSION}. Write the page and the model with the same version of var-hf.`,
    );
  }
  for (const name of graphNames) {
    if (!metadata.files?.[metadata.graphs?.[name]]) {
      throw new Error(`model/metadata.json does not describe the graph ${name}. ${AGAIN}`);
    }
  }
  const sizes = Object.entries(metadata.files).map(([name, entry]) => [name, entry.size]);
  const [largest, size] = sizes.reduce((a, b) => (b[1] > a[1] ? b : a));
  if (size > LARGEST_FILE || largest.endsWith(".data")) {
    throw new Error(
      `This model is too large for a browser: ${largest} takes ${inUnits(size)}, and a browser ` +
        `reads a graph of up to ${inUnits(LARGEST_FILE)}. Run it in Python with var_hf.onnx.`,
    );
  }
  // float16 becomes float32 when it is loaded.
  const growth = metadata.dtype === "int8" ? 1 : metadata.dtype === "float16" ? 3 : 2;
  const memory = growth * sizes.reduce((sum, [, bytes]) => sum + bytes, 0);
  if (memory > LARGEST_MODEL) {
    throw new Error(
      `This model is too large for a browser: loading it takes about ${inUnits(memory)}, and ` +
        `WebAssembly addresses ${inUnits(LARGEST_MODEL)}. Run it in Python with var_hf.onnx.`,
    );
  }
}

/**
 * The content of a file, from storage or from the server; stored after it was checked.
 * @param {string} path In the page's folder.
 * @param {{size: number, sha256: string}} entry What the file should be.
 * @param {(bytes: number) => void} received Called with the number of bytes of each part.
 * @returns {Promise<Uint8Array>}
 */
export async function readFile(path, entry, received) {
  const cache = await openCache();
  const stored = await cache.match(storedAs(path, entry));
  if (stored) {
    const bytes = new Uint8Array(await stored.arrayBuffer());
    if (bytes.length === entry.size && (await digest(bytes)) === entry.sha256) {
      received(entry.size);
      return bytes;
    }
  }
  const bytes = await download(path, entry, received);
  try {
    await cache.put(storedAs(path, entry), new Response(bytes));
  } catch {
    // The storage is full: the page works, but will download the file again.
  }
  return bytes;
}

/** Removes stored versions of the model and the runtime that are not these files. */
export async function removeOthers(files) {
  const wanted = new Set(Object.entries(files).map(([path, entry]) => storedAs(path, entry)));
  const cache = await openCache();
  const found = await Promise.all([...wanted].map((address) => cache.match(address)));
  for (const { url } of await cache.keys()) {
    if (url.includes("?sha256=") && !wanted.has(url)) await cache.delete(url);
  }
  return found.every(Boolean); // whether all are stored
}

async function download(path, entry, received) {
  const response = await request(path, { cache: "no-cache" });
  const bytes = new Uint8Array(entry.size);
  let length = 0;
  for (const reader = response.body.getReader(); ; ) {
    let part;
    try {
      part = await reader.read();
    } catch {
      throw new Error(`The download of ${path} broke off after ${inUnits(length)}. ${AGAIN}`);
    }
    if (part.done) break;
    if (length + part.value.length <= entry.size) bytes.set(part.value, length);
    length += part.value.length;
    received(part.value.length);
  }
  if (length !== entry.size) {
    throw new Error(
      `${path} has ${length.toLocaleString("en")} bytes and should have ` +
        `${entry.size.toLocaleString("en")}: it is truncated or of another export. ${AGAIN}`,
    );
  }
  if ((await digest(bytes)) !== entry.sha256) {
    throw new Error(`${path} is corrupted: its SHA-256 differs from metadata.json. ${AGAIN}`);
  }
  return bytes;
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(folderFile(path), options);
  } catch {
    throw new Error(`${path} could not be loaded: the server did not answer. ${AGAIN}`);
  }
  if (!response.ok) {
    throw new Error(`${path} is missing on the server (HTTP ${response.status}). ${AGAIN}`);
  }
  return response;
}

async function digest(bytes) {
  const words = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(words, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A number of bytes as text. */
export function inUnits(bytes) {
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}
