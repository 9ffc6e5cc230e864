// Service worker: the page without a network. The model and the runtime's code are stored by
// files.js, under addresses with their SHA-256.

const CACHE = `var-hf ${new URL("./", self.location).pathname}`;
const FILES = [
  "./",
  "app.webmanifest",
  "classes.js",
  "editor.js",
  "files.js",
  "graphs.js",
  "icon.svg",
  "mark.svg",
  "model/metadata.json",
  "page.js",
  "page.json",
  "python.js",
  "random.js",
  "runner.js",
  "runtime/LICENSE",
  "runtime/ort-wasm-simd-threaded.asyncify.mjs",
  "runtime/ort-wasm-simd-threaded.mjs",
  "runtime/ort.wasm.min.mjs",
  "runtime/ort.webgpu.min.mjs",
  "sampling.js",
  "style.css",
  "worker.js",
];
const addresses = new Set(FILES.map((file) => new URL(file, self.location).href));

self.addEventListener("install", (event) => {
  const store = async () => (await caches.open(CACHE)).addAll([...addresses]);
  event.waitUntil(store().then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  const address = url.split(/[?#]/)[0].replace(/\/index\.html$/, "/");
  if (method === "GET" && addresses.has(address)) event.respondWith(answer(event.request, address));
});

/** The server's answer, which is stored; the stored one where there is no network. */
async function answer(request, address) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(address, response.clone());
    return response;
  } catch (error) {
    const stored = await cache.match(address);
    if (stored) return stored;
    throw error;
  }
}
