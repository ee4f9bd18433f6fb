// This browser's pictures: kept in its IndexedDB, the newest first.

import { $, button } from "./dom.js";
import { readProvenance } from "./provenance.js";

const STORE = "pictures";

const opened = new Promise((resolve, reject) => {
  const opening = indexedDB.open("stable-diffusion-on-ray", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
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
  constructor(said, cancel, isLast = false) {
    this.element = $("card").content.firstElementChild.cloneNode(true);
    this._progress = this.element.querySelector("progress");
    this._image = this.element.querySelector("img");
    this._said = this.element.querySelector(".said");
    this._settings = this.element.querySelector(".settings");
    this.element.dataset.state = "running";
    this._image.alt = "";
    this.say(said);
    this.setButtons([button("Cancel", cancel)]);
    if (isLast) $("pictures").append(this.element);
    else $("pictures").prepend(this.element);
    $("no-pictures").hidden = true;
  }

  show({ num_ahead: ahead, step, num_steps: steps, preview }) {
    if (steps) {
      Object.assign(this._progress, { max: steps, value: step });
      this.say(step ? `Step ${step} of ${steps}` : ahead ? `${ahead} ahead` : "Starting …");
    } else this.say("Rendering …"); // an edit tells no steps
    if (preview) Object.assign(this._image, { src: preview, alt: "A preview" });
  }

  say(text) {
    this._said.textContent = this._said.title = text; // a long one is cut to some lines
  }

  setButtons(buttons) {
    const row = this.element.querySelector(".buttons");
    const hadFocus = row.contains(document.activeElement);
    row.replaceChildren(...buttons);
    if (hadFocus) buttons[0]?.focus();
  }

  fail(reason, { prompt, seed }, buttons) {
    this.element.dataset.state = "failed";
    this._progress.hidden = true;
    this.say(reason);
    this._settings.textContent = `${prompt} · seed ${seed}`;
    this.setButtons([...buttons, button("Remove", () => this.remove())]);
  }

  remove() {
    finished.delete(this);
    const next = this.element.nextElementSibling ?? this.element.previousElementSibling;
    const hadFocus = this.element.contains(document.activeElement);
    this.element.remove();
    if (this._image.src.startsWith("blob:")) URL.revokeObjectURL(this._image.src);
    if (hadFocus) (next?.querySelector("button") ?? $("prompt")).focus();
    showWhetherEmpty();
  }

  /** Show what is kept, or could not be (`id` null). `actions` are {name: function of (request, picture)}. */
  finish({ id, picture, start, request, model, tokensCut }, actions) {
    const url = URL.createObjectURL(picture);
    const whole = { ...request, model, start };
    this.element.dataset.state = "done";
    this._progress.hidden = true;
    Object.assign(this._image, { src: url, alt: request.prompt });
    this.say(request.prompt);
    this._settings.textContent = settingsText(request, model, tokensCut);
    const download = Object.assign(document.createElement("a"), {
      href: url, download: fileName(request), textContent: "Download", className: "button",
    });
    const forget = () => {
      if (id !== null) stored("readwrite", (store) => store.delete(id));
      this.remove();
    };
    this.setButtons([
      ...Object.entries(actions).map(([name, act]) => button(name, () => act(whole, picture))),
      download,
      button("Forget", forget),
    ]);
    finished.add(this);
    showWhetherEmpty();
  }
}

const finished = new Set();

/** Keep a picture that was asked for `at` a time; its `id` is null where this browser cannot. */
export async function keep({ picture, tokensCut }, start, at) {
  const { request, model } = (await readProvenance(picture)) ?? { request: { prompt: "" }, model: "" };
  const entry = { picture, start, at, request, model, tokensCut };
  const id = await stored("readwrite", (store) => store.add(entry)).catch(() => null);
  return { ...entry, id };
}

/** Cards of all that were kept, after those that have been asked for meanwhile. */
export async function showKept(actions) {
  const entries = await stored("readonly", (store) => store.getAll()).catch(() => []);
  entries.sort((one, other) => other.at - one.at);
  for (const entry of entries) new Card("", () => {}, true).finish(entry, actions);
}

export function forgetAll() {
  stored("readwrite", (store) => store.clear()).catch(() => {}); // then there is nothing in it
  for (const card of finished) card.remove();
}

function showWhetherEmpty() {
  $("no-pictures").hidden = $("pictures").childElementCount > 0;
  $("forget").hidden = !$("pictures").querySelector("[data-state=done]");
}

function fileName({ prompt, seed }) {
  const words = prompt.slice(0, 40).match(/[\p{L}\p{N}]+/gu) ?? [];
  return `${[...words, seed].join("-")}.png`;
}

function settingsText(request, model, tokensCut = {}) {
  const lora = Object.entries(request.lora ?? {}).map(([name, weight]) => `${name} ${weight}`);
  return [
    `seed ${request.seed}`, `${request.width} × ${request.height}`, `${request.num_inference_steps} steps`,
    `guidance ${request.guidance_scale}`, request.scheduler, model, ...lora,
    request.strength && `strength ${request.strength}`,
    ...Object.entries(tokensCut).map(([name, number]) => `${name.replace("_", " ")} cut by ${number} tokens`),
    request.negative_prompt && `not: ${request.negative_prompt}`,
  ].filter(Boolean).join(" · ");
}
