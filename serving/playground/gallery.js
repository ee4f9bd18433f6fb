// This browser's pictures: kept in its IndexedDB, the newest first.

import { readProvenance } from "./provenance.js";

const $ = (id) => document.getElementById(id);
const STORE = "pictures";

const opened = new Promise((resolve, reject) => {
  const opening = indexedDB.open("stable-diffusion-on-ray", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { autoIncrement: true });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => reject(opening.error);
});

/** What a request in the store answers, when it is kept for good. */
async function stored(mode, ask) {
  const transaction = (await opened).transaction(STORE, mode);
  const asked = ask(transaction.objectStore(STORE));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(asked.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

/** A card of a picture on its way: `show` its progress, then `finish` or `fail` it. */
export class Card {
  constructor(said, cancel) {
    this.element = $("card").content.firstElementChild.cloneNode(true);
    this._progress = this.element.querySelector("progress");
    this._image = this.element.querySelector("img");
    this._said = this.element.querySelector(".said");
    this.element.dataset.state = "running";
    this._image.alt = "";
    this.say(said);
    this.setButtons([button("Cancel", cancel)]);
    $("pictures").prepend(this.element);
    $("no-pictures").hidden = true;
  }

  show({ num_ahead: ahead, step, num_steps: steps, preview }) {
    if (steps) {
      Object.assign(this._progress, { max: steps, value: step });
      this.say(step ? `Step ${step} of ${steps}` : ahead ? `${ahead} ahead` : "Starting …");
    }
    if (preview) Object.assign(this._image, { src: preview, alt: "A preview" });
  }

  say(text) {
    this._said.textContent = text;
  }

  setButtons(buttons) {
    this.element.querySelector(".buttons").replaceChildren(...buttons);
  }

  fail(reason, buttons) {
    this.element.dataset.state = "failed";
    this._progress.hidden = true;
    this.say(reason);
    this.setButtons([...buttons, button("Remove", () => this.remove())]);
  }

  remove() {
    this.element.remove();
    showWhetherEmpty();
  }

  /** Show it for good. `actions` are {name: function of (request, picture)}. */
  async finish({ picture, start }, key, actions) {
    const { request, model } = (await readProvenance(picture)) ?? { request: {}, model: "" };
    const url = URL.createObjectURL(picture);
    const whole = { ...request, model, start };
    this.element.dataset.state = "done";
    this._progress.hidden = true;
    Object.assign(this._image, { src: url, alt: request.prompt ?? "" });
    this.say(request.prompt ?? "");
    this.element.querySelector(".settings").textContent = settingsText(request, model);
    const download = Object.assign(document.createElement("a"), {
      href: url, download: `${(request.prompt ?? "picture").replace(/\W+/g, "-").slice(0, 40)}-${request.seed}.png`,
      textContent: "Download", className: "button",
    });
    const forget = async () => {
      await stored("readwrite", (store) => store.delete(key));
      URL.revokeObjectURL(url);
      this.remove();
    };
    this.setButtons([
      ...Object.entries(actions).map(([name, act]) => button(name, () => act(whole, picture))),
      download,
      button("Forget", forget),
    ]);
    $("forget").hidden = false;
  }
}

/** Keep a picture; returns its key, or null where this browser cannot. */
export async function keep(entry) {
  return stored("readwrite", (store) => store.add(entry)).catch(() => null);
}

/** Cards of all that were kept. */
export async function showKept(actions) {
  const entries = await stored("readonly", (store) => store.getAll()).catch(() => []);
  const keys = await stored("readonly", (store) => store.getAllKeys()).catch(() => []);
  for (const [index, entry] of entries.entries()) await new Card("", () => {}).finish(entry, keys[index], actions);
}

export async function forgetAll() {
  await stored("readwrite", (store) => store.clear());
  for (const card of $("pictures").querySelectorAll("[data-state=done]")) card.remove();
  showWhetherEmpty();
}

function showWhetherEmpty() {
  $("no-pictures").hidden = $("pictures").childElementCount > 0;
  $("forget").hidden = !$("pictures").querySelector("[data-state=done]");
}

function settingsText(request, model) {
  const lora = Object.entries(request.lora ?? {}).map(([name, weight]) => `${name} ${weight}`);
  return [
    `seed ${request.seed}`, `${request.width} × ${request.height}`, `${request.num_inference_steps} steps`,
    `guidance ${request.guidance_scale}`, request.scheduler, model, ...lora,
    request.strength && `strength ${request.strength}`, request.negative_prompt && `not: ${request.negative_prompt}`,
  ].filter(Boolean).join(" · ");
}

export function button(text, act) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  made.addEventListener("click", act);
  return made;
}
