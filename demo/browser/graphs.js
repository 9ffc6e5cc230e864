// The graphs of the model on onnxruntime-web, which lies in the folder runtime/.

import { folderFile } from "./files.js";

const BUILDS = {
  wasm: { script: "ort.wasm.min.mjs", glue: "ort-wasm-simd-threaded.mjs" },
  webgpu: { script: "ort.webgpu.min.mjs", glue: "ort-wasm-simd-threaded.asyncify.mjs" },
};

// The others hold little work, and join more arrays than a shader of WebGPU may read.
const HEAVY = ["transformer", "decoder", "encoder"];

/** The file with the code of onnxruntime for a backend. */
export const binaryOf = (backend) => BUILDS[backend].glue.replace(".mjs", ".wasm");

/** Loads onnxruntime-web for a backend, "wasm" or "webgpu", from its binary. */
export async function loadRuntime(backend, binary) {
  const { script, glue } = BUILDS[backend];
  const ort = await import(folderFile(`runtime/${script}`));
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  ort.env.wasm.wasmPaths = { mjs: folderFile(`runtime/${glue}`) };
  ort.env.wasm.wasmBinary = binary;
  return ort;
}

/** The graphs of an exported folder. */
export class Graphs {
  /**
   * @param {object} ort The module onnxruntime-web.
   * @param {object} metadata Content of metadata.json.
   * @param {string} backend "wasm" or "webgpu".
   */
  constructor(ort, metadata, backend) {
    Object.assign(this, { ort, metadata, backend, sessions: {} });
  }

  /** Creates the session of a graph from the bytes of its file. */
  async add(name, bytes) {
    const onGpu = this.backend === "webgpu" && HEAVY.includes(name);
    const options = {
      executionProviders: [onGpu ? "webgpu" : "wasm"],
      logSeverityLevel: 3, // errors
    };
    if (onGpu && name === "transformer") {
      options.preferredOutputLocation = Object.fromEntries(
        Array.from({ length: this.metadata.model.num_hidden_layers }, (_, layer) => [
          [`present.${layer}.key`, "gpu-buffer"],
          [`present.${layer}.value`, "gpu-buffer"],
        ]).flat(),
      );
    }
    try {
      this.sessions[name] = await this.ort.InferenceSession.create(bytes, options);
    } catch (error) {
      const file = this.metadata.graphs[name];
      throw new Error(
        `onnxruntime-web cannot load ${file} (opset ${this.metadata.opset}): ${error.message} ` +
          "Export the model with a smaller --opset, or use a newer browser.",
      );
    }
  }

  /** A tensor: whole numbers in an array become int64, a Float32Array float32. */
  tensor(values, shape) {
    if (values instanceof Float32Array) return new this.ort.Tensor("float32", values, shape);
    return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
  }

  /** All outputs of a graph. Inputs are tensors, or pairs of values and shape. */
  async runAll(name, inputs) {
    const feeds = Object.entries(inputs).map(([key, value]) => [
      key,
      Array.isArray(value) ? this.tensor(...value) : value,
    ]);
    return this.sessions[name].run(Object.fromEntries(feeds));
  }

  /** The only output of a graph. */
  async run(name, inputs) {
    return Object.values(await this.runAll(name, inputs))[0];
  }
}
