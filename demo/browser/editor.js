// The image to edit and the painted cells of its finest scale.

const LARGEST_UPLOAD = 30e6; // bytes
const SHARPNESS = 8; // pixels of the sheet per pixel of the image

/** Reads an uploaded file as the square of the model: the middle of the image, on white. */
export async function readUpload(file, size) {
  if (file.size > LARGEST_UPLOAD) {
    throw new Error(`${file.name} has ${(file.size / 1e6).toFixed(0)} MB; upload at most 30 MB.`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no image that this browser can read. Upload a PNG or JPEG.`);
  }
  const side = Math.min(bitmap.width, bitmap.height);
  const [left, top] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  const canvas = new OffscreenCanvas(size, size);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, size, size);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, left, top, side, side, 0, 0, size, size);
  return context.getImageData(0, 0, size, size).data;
}

/** Shows an image, and lets its cells be painted by pointer and keyboard. */
export class Sheet {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    Object.assign(this, { canvas, pixels: null, cells: 0, painted: [], painting: false });
    Object.assign(this, { cursor: 0, brush: null });
    canvas.addEventListener("pointerdown", (event) => this.startStroke(event));
    canvas.addEventListener("pointermove", (event) => this.continueStroke(event));
    canvas.addEventListener("pointerup", () => (this.brush = null));
    canvas.addEventListener("pointercancel", () => (this.brush = null));
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    canvas.addEventListener("focus", () => this.show());
    canvas.addEventListener("blur", () => this.show());
  }

  /** @param {object} model Sizes of the model. */
  setUp(model) {
    this.cells = model.token_map_sizes.at(-1);
    this.size = model.image_size;
    this.canvas.width = this.canvas.height = this.size * SHARPNESS;
    this.clear();
  }

  /** @param {Uint8ClampedArray} pixels P * P pixels, RGBA. */
  setImage(pixels) {
    this.pixels = pixels;
    this.clear();
  }

  clear() {
    this.painted = Array(this.cells ** 2).fill(false);
    this.show();
  }

  setPainting(painting) {
    this.painting = painting;
    this.canvas.parentElement.classList.toggle("painting", painting);
    this.show();
  }

  show() {
    const context = this.canvas.getContext("2d");
    const { width } = this.canvas;
    context.clearRect(0, 0, width, width);
    const count = this.painted.filter(Boolean).length;
    const paint = this.painting ? ` ${count} of ${this.painted.length} cells are painted.` : "";
    this.canvas.setAttribute(
      "aria-label",
      this.pixels ? `The image to edit.${paint}` : "No image to edit yet.",
    );
    if (!this.pixels) return;
    const image = new OffscreenCanvas(this.size, this.size);
    image.getContext("2d").putImageData(new ImageData(this.pixels, this.size), 0, 0);
    context.drawImage(image, 0, 0, width, width);
    if (!this.painting) return;
    const cell = width / this.cells;
    context.fillStyle = getComputedStyle(this.canvas).getPropertyValue("--paint");
    context.globalAlpha = 0.75;
    this.painted.forEach((one, index) => {
      if (one) context.fillRect(...this.corner(index), cell, cell);
    });
    context.globalAlpha = 1;
    if (!this.canvas.matches(":focus-visible")) return;
    for (const [colour, line] of [["white", 6], ["black", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(...this.corner(this.cursor), cell, cell);
    }
  }

  corner(index) {
    const cell = this.canvas.width / this.cells;
    return [(index % this.cells) * cell, Math.floor(index / this.cells) * cell];
  }

  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const place = (offset, length) =>
      Math.max(0, Math.min(this.cells - 1, Math.floor((offset / length) * this.cells)));
    const column = place(event.clientX - box.left, box.width);
    return place(event.clientY - box.top, box.height) * this.cells + column;
  }

  startStroke(event) {
    if (!this.painting || !this.pixels) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = this.cellAt(event);
    this.brush = !this.painted[this.cursor]; // a stroke from a painted cell erases
    this.paint(this.cursor, this.brush);
  }

  continueStroke(event) {
    if (this.brush !== null) this.paint((this.cursor = this.cellAt(event)), this.brush);
  }

  onKey(event) {
    if (!this.painting || !this.pixels) return;
    const [row, column] = [Math.floor(this.cursor / this.cells), this.cursor % this.cells];
    const last = this.cells - 1;
    const moves = {
      ArrowUp: [Math.max(0, row - 1), column],
      ArrowDown: [Math.min(last, row + 1), column],
      ArrowLeft: [row, Math.max(0, column - 1)],
      ArrowRight: [row, Math.min(last, column + 1)],
    };
    if (moves[event.key]) {
      this.cursor = moves[event.key][0] * this.cells + moves[event.key][1];
      this.show();
    } else if (event.key === " ") {
      this.paint(this.cursor, !this.painted[this.cursor]);
    } else return;
    event.preventDefault();
  }

  paint(index, value) {
    this.painted[index] = value;
    this.show();
  }
}
