// The form: what a model allows and prefers, a request out of it and back into it.

import { $, hasOption } from "./dom.js";

const TEXTS = ["prompt", "negative_prompt"];
const NUMBERS = ["width", "height", "num_inference_steps", "guidance_scale", "seed"];
// Width to height of what the size menu offers, and its number of pixels to the native one's.
const SHAPES = [[1, 1], [3, 2], [2, 3], [16, 9], [9, 16]];
const AREAS = [0.25, 1, 2.25, 4];
const MAX_DRAWN_SEED = 2 ** 32;

let profile = null;
let start = null; // the file of the picture to start from

/** Show what `model` allows. What stands in the form stays, where it is allowed. */
export function setProfile(model) {
  const { defaults, limits, schedulers, adapters, size_multiple } = model;
  const [before, lora, scheduler] = [profile, adapterWeights(), $("scheduler").value];
  profile = model;
  $("scheduler").replaceChildren(...schedulers.map((name) => new Option(shortName(name), name)));
  const stays = scheduler !== before?.defaults.scheduler && hasOption($("scheduler"), scheduler);
  $("scheduler").value = stays ? scheduler : defaults.scheduler;
  for (const side of ["width", "height"]) {
    Object.assign($(side), { min: limits.min_side, max: limits.max_side, step: size_multiple });
  }
  $("num_inference_steps").max = limits.max_num_inference_steps;
  $("guidance_scale").max = limits.max_guidance_scale;
  for (const name of ["width", "height", "num_inference_steps", "guidance_scale"]) {
    if (!$(name).value || Number($(name).value) === before?.defaults[name]) $(name).value = defaults[name];
    $(name).placeholder = defaults[name]; // what stands for nothing
  }
  if (!$("seed").value) drawSeed();
  $("size").replaceChildren(...sizes().map(([w, h]) => new Option(`${w} × ${h}`, `${w}x${h}`)), new Option("other", ""));
  showSize();
  $("adapters").hidden = !Object.keys(adapters).length;
  $("adapters").replaceChildren($("adapters").firstElementChild, ...Object.keys(adapters).map(adapterRow));
  setAdapters(lora);
  $("start-row").hidden = !model.edits;
  setStart(start);
}

/** The whole request that the form shows: it is the same picture whatever a model's defaults become. */
export function request() {
  const fields = {};
  for (const name of TEXTS) if (name === "prompt" || $(name).value.trim()) fields[name] = $(name).value;
  for (const name of NUMBERS) {
    const text = $(name).value || $(name).placeholder;
    if (text) fields[name] = Number(text);
  }
  if ($("scheduler").value) fields.scheduler = $("scheduler").value;
  if ($("model").options.length > 1) fields.model = $("model").value;
  const lora = adapterWeights();
  if (Object.keys(lora).length) fields.lora = lora;
  if (start) Object.assign(fields, { start, strength: Number($("strength").value) });
  return fields;
}

/** Put a whole request back into the form; returns the names of what this model cannot have. */
export function restore({ start: picture = null, scheduler, lora = {}, ...fields }) {
  for (const name of [...TEXTS, ...NUMBERS]) if (name in fields) $(name).value = fields[name];
  setAdapters(lora);
  const hasScheduler = hasOption($("scheduler"), scheduler);
  if (hasScheduler) $("scheduler").value = scheduler;
  if (fields.strength) $("strength").value = fields.strength;
  const hasStart = setStart(picture);
  setLocked(true);
  showSize();
  return [
    ...(hasScheduler ? [] : [scheduler]),
    ...Object.keys(lora).filter((name) => !adapterInputs().some((input) => input.name === name)),
    ...(fields.image_sha256 && !hasStart ? ["the picture that it starts from"] : []),
  ];
}

/** Start from this file, or with null from nothing; returns whether the next picture will. */
export function setStart(file) {
  if (start) URL.revokeObjectURL($("start-picture").src);
  start = profile?.edits ? file : null;
  $("start").hidden = !start;
  if (start) $("start-picture").src = URL.createObjectURL(start);
  for (const name of ["size", "width", "height"]) $(name).disabled = Boolean(start); // it has its own
  showStrength();
  return Boolean(start);
}

/** The seed of the next picture: another one, unless it is kept. */
export function nextSeed() {
  if (!isLocked() || $("seed").value === "") drawSeed();
}

/** Mark the field that is to be mended, or with null none. */
export function markWrong(field) {
  for (const each of document.querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
  const wrong = inputOf(field);
  if (!wrong) return;
  wrong.closest("details")?.setAttribute("open", "");
  wrong.setAttribute("aria-invalid", "true");
  wrong.focus();
}

export const isWrong = () => document.querySelector("[aria-invalid]") !== null;

/** An error's message, with the field that it names as the form calls it. */
export function inWords({ message, field }) {
  const label = inputOf(field)?.labels?.[0]?.firstChild.textContent.trim();
  return label ? message.replace(`${field}:`, `${label}:`) : message;
}

/** What holds a field of a request, by its name there. */
function inputOf(field) {
  const [name, part] = field?.split(".") ?? [];
  return { size: $("width"), lora: $("adapters").querySelector(`[name="${part}"]`), image: $("file") }[name] ?? $(name);
}

export function listen(changed, mended) {
  $("size").addEventListener("change", () => {
    const [width, height] = $("size").value.split("x");
    if (height) Object.assign($("width"), { value: width }), Object.assign($("height"), { value: height });
    else $("settings").open = true, $("width").focus();
  });
  for (const side of ["width", "height"]) $(side).addEventListener("input", showSize);
  $("dice").addEventListener("click", () => { drawSeed(); setLocked(true); changed(); });
  $("lock").addEventListener("click", () => setLocked(!isLocked()));
  $("seed").addEventListener("input", () => setLocked(true));
  $("start-remove").addEventListener("click", () => { setStart(null); changed(); $("file").focus(); });
  $("strength").addEventListener("input", showStrength);
  $("form").addEventListener("input", (event) => {
    if (event.target.hasAttribute("aria-invalid")) { markWrong(null); mended(); }
    changed();
  });
  $("form").addEventListener("change", changed);
}

function sizes() {
  const { defaults, limits, size_multiple: multiple } = profile;
  const area = defaults.width * defaults.height;
  const fit = (side) => Math.round(side / multiple) * multiple;
  const all = AREAS.flatMap((part) => SHAPES.map(([w, h]) => [
    fit(Math.sqrt((area * part * w) / h)), fit(Math.sqrt((area * part * h) / w)),
  ]));
  return [[defaults.width, defaults.height], ...all].filter(([w, h], index, list) =>
    Math.min(w, h) >= limits.min_side && Math.max(w, h) <= limits.max_side && w * h <= limits.max_pixels &&
    list.findIndex((other) => other[0] === w && other[1] === h) === index);
}

function showSize() {
  const size = `${$("width").value}x${$("height").value}`;
  $("size").value = hasOption($("size"), size) ? size : "";
}

function showStrength() {
  $("strength-now").value = $("strength").value;
}

function adapterRow(name) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "number", name, value: 0, step: 0.1, min: -10, max: 10 });
  label.append(name, input);
  return label;
}

const adapterInputs = () => [...$("adapters").querySelectorAll("input")];

function setAdapters(lora) {
  for (const input of adapterInputs()) input.value = lora[input.name] ?? 0;
}

function adapterWeights() {
  return Object.fromEntries(adapterInputs().map((input) => [input.name, Number(input.value)]).filter(([, weight]) => weight));
}

function drawSeed() {
  $("seed").value = Math.floor(Math.random() * MAX_DRAWN_SEED);
}

const isLocked = () => $("lock").getAttribute("aria-pressed") === "true";

function setLocked(locked) {
  $("lock").setAttribute("aria-pressed", String(locked));
}

/** DPMSolverMultistepScheduler is long for a menu. */
const shortName = (name) => name.replace(/Scheduler$/, "");
