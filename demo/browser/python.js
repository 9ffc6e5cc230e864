// The Python that draws the images of the page again.

import { className, findClass } from "./classes.js";

/**
 * @param {object} drawn `classId`, `seeds`, `guidanceScale`, and for an edit `edit`.
 * @param {object} metadata Content of metadata.json.
 * @returns {{code: string, hint: string}}
 */
export function pythonLines({ classId, seeds, guidanceScale, edit }, metadata) {
  if (edit?.painted) {
    return {
      code: "",
      hint:
        "var_hf.onnx draws no painted parts. VARInpaintPipeline does, with other random numbers.",
    };
  }
  const pipeline = edit ? "OnnxVARImg2ImgPipeline" : "OnnxVARPipeline";
  const label = pythonLabel(classId, metadata);
  const several = seeds.length > 1;
  const options = [
    ...(edit ? ['Image.open("image.png")'] : []),
    several ? `[${label}] * ${seeds.length}` : label,
    ...(edit ? [`strength=${edit.strength}`] : []),
    ...(guidanceScale === metadata.sampling.guidance_scale ? [] : [`guidance_scale=${guidanceScale}`]),
    several ? `seed=[${seeds.join(", ")}]` : `seed=${seeds[0]}`,
  ];
  const lines = [
    ...(edit ? ["from PIL import Image"] : []),
    `from var_hf.onnx import ${pipeline}`,
    "",
    `pipe = ${pipeline}.from_pretrained("model")`,
    `images = pipe(${options.join(", ")}).images`,
  ];
  const image = edit ? " image.png is the image to edit." : "";
  return {
    code: lines.join("\n"),
    hint: `The folder model is that of this page, or one that var-hf export-onnx writes.${image}`,
  };
}

/** The usual name of a class as a Python string if it is unique, else the id. */
function pythonLabel(id, metadata) {
  if (id === metadata.model.num_classes) return "None";
  const name = className(id, metadata);
  const found = findClass(name, metadata);
  return found.length === 1 && found[0] === id ? JSON.stringify(name) : String(id);
}
