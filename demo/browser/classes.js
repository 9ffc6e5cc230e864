// Class names, and the searchable list of them.

/** The part of a label before the first comma, or "class 7" for a class without a name. */
export function className(id, metadata) {
  if (id === metadata.model.num_classes) return "no class";
  return (metadata.id2label[id] ?? "").split(",")[0].trim() || `class ${id}`;
}

/**
 * The ids that a text names, as var_hf.labels: an id, a whole label, or one of its parts.
 * @returns {number[]} None if the name is unknown, several if it belongs to several classes.
 */
export function findClass(text, metadata) {
  const wanted = text.trim().toLowerCase();
  const ids = Array.from({ length: metadata.model.num_classes }, (_, id) => id);
  if (/^\d+$/.test(wanted)) return ids.filter((id) => id === Number(wanted));
  const label = (id) => (metadata.id2label[id] ?? "").toLowerCase();
  const whole = ids.filter((id) => label(id) === wanted && wanted);
  if (whole.length) return whole;
  return ids.filter((id) => wanted && label(id).split(",").some((part) => part.trim() === wanted));
}

/** A text input with a list, after the pattern "combobox" of the ARIA Authoring Practices. */
export class ClassList {
  /**
   * @param {HTMLInputElement} input With the role combobox.
   * @param {HTMLUListElement} list With the role listbox.
   */
  constructor(input, list) {
    Object.assign(this, { input, list, choices: [], shown: [], active: -1, value: null });
    input.addEventListener("input", () => this.open(input.value));
    input.addEventListener("click", () => this.open(""));
    input.addEventListener("focus", () => input.select());
    input.addEventListener("blur", () => this.close());
    input.addEventListener("keydown", (event) => this.onKey(event));
    list.addEventListener("pointerdown", (event) => event.preventDefault()); // keeps the focus
    list.addEventListener("click", ({ target }) => {
      const index = [...list.children].indexOf(target);
      if (this.shown[index]) this.choose(this.shown[index].id);
    });
  }

  /** @param {{id: number, name: string}[]} choices In the order of the list. */
  fill(choices) {
    this.choices = choices;
    this.choose(choices[0].id);
    this.input.disabled = false;
  }

  choose(id) {
    this.value = id;
    this.close();
  }

  get isOpen() {
    return !this.list.hidden;
  }

  open(text) {
    const wanted = text.trim().toLowerCase();
    const place = ({ name }) => name.toLowerCase().indexOf(wanted);
    const found = this.choices.filter((one) => place(one) >= 0);
    this.shown = found.sort((a, b) => Math.min(place(a), 1) - Math.min(place(b), 1));
    this.list.replaceChildren(...this.shown.map(({ name }, index) => option(name, index)));
    if (!this.shown.length) {
      const none = option(`No class has “${text}” in its name.`, "none");
      none.classList.add("none");
      none.setAttribute("aria-disabled", "true");
      this.list.append(none);
    }
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    const current = this.shown.findIndex(({ id }) => id === this.value);
    this.activate(wanted || current < 0 ? 0 : current);
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    this.input.value = this.choices.find(({ id }) => id === this.value)?.name ?? "";
  }

  activate(index) {
    this.list.children[this.active]?.setAttribute("aria-selected", "false");
    this.active = this.shown.length ? (index + this.shown.length) % this.shown.length : -1;
    const item = this.list.children[this.active];
    if (!item) return this.input.removeAttribute("aria-activedescendant");
    item.setAttribute("aria-selected", "true");
    item.scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", item.id);
  }

  onKey(event) {
    const { key } = event;
    if (key === "ArrowDown" || key === "ArrowUp") {
      event.preventDefault();
      if (!this.isOpen) this.open("");
      else this.activate(this.active + (key === "ArrowDown" ? 1 : -1));
    } else if (key === "Enter" && this.isOpen) {
      event.preventDefault(); // chooses, and does not draw yet
      if (this.shown[this.active]) this.choose(this.shown[this.active].id);
    } else if (key === "Escape" && this.isOpen) {
      this.close();
    }
  }
}

function option(text, index) {
  const item = document.createElement("li");
  item.id = `class-${index}`;
  item.setAttribute("role", "option");
  item.setAttribute("aria-selected", "false");
  item.textContent = text;
  return item;
}
