// The engine at work: its latest forwards, and who is in them.

import { $ } from "./dom.js";
import { get } from "./service.js";

const EVERY_MS = 1000;
const NUM_SHOWN = 48;
const CELL = 9;
const LABEL = 7; // columns that one takes
const FORGET_AFTER_MS = 10_000;

const engines = new Map(); // by name: when each answered last, and what. A service may have several.
let running = null;

export function start(model) {
  stop();
  running = new AbortController();
  follow(model, running.signal);
}

export function stop() {
  running?.abort();
}

async function follow(model, signal) {
  let asked = null;
  while (!signal.aborted) {
    if (asked !== model()) engines.clear();
    asked = model();
    if (!document.hidden) {
      await get("forwards", { model: asked }, signal).then(show, (error) => signal.aborted || showNone(error.message));
    }
    await new Promise((go) => setTimeout(go, EVERY_MS));
  }
}

function show(answer) {
  const now = performance.now();
  engines.set(answer.engine, { ...answer, at: now });
  for (const [name, { at }] of engines) if (now - at > FORGET_AFTER_MS) engines.delete(name);
  say(engines.size > 1 ? `${engines.size} engines, seen one after the other` : "");
  $("engines").replaceChildren(...[...engines.values()].map(engineView));
}

/** Nothing is known any more, so nothing is to look as if it were. */
function showNone(reason) {
  say(reason);
  engines.clear();
  $("engines").replaceChildren();
}

function engineView({ engine, counters, in_flight: inFlight, latest }) {
  const view = document.createElement("section");
  const title = document.createElement("h2");
  title.textContent = `Engine ${engine}`;
  view.append(title, summary(counters), countersTable(counters));
  if (latest.length) view.append(strip(latest), members(inFlight, latest));
  return view;
}

function summary({ forwards_by_requests: by, busy_s }) {
  const total = Object.values(by).reduce((sum, each) => sum + each, 0);
  const shared = total - (by[1] ?? 0);
  const text = document.createElement("p");
  text.textContent = `${total} forwards so far, ${percent(shared, total)} of them shared; in forwards for ${busy_s.toFixed(0)} s.`;
  return text;
}

function countersTable({ online, bulk, num_padding_rows }) {
  const table = $("counters").content.firstElementChild.cloneNode(true);
  table.tBodies[0].append(
    row("online", online), row("bulk", bulk), tableRow("padding", ["", "", "", num_padding_rows]),
  );
  return table;
}

function row(kind, { num_in_flight, num_waiting, num_completed, num_rows }) {
  return tableRow(kind, [num_in_flight, num_waiting, num_completed, num_rows]);
}

function tableRow(title, values) {
  const tr = document.createElement("tr");
  const th = tr.appendChild(document.createElement("th"));
  th.scope = "row";
  th.textContent = title;
  for (const value of values) tr.insertCell().append(value);
  return tr;
}

function strip(forwards) {
  const rowsOf = (forward) => forward.padding_rows + forward.members.reduce((sum, each) => sum + each.rows, 0);
  const most = Math.max(8, ...forwards.map(rowsOf));
  const last = forwards.at(-1);
  const picture = svg("svg", {
    class: "strip", viewBox: `0 0 ${NUM_SHOWN * CELL} ${most * CELL + 24}`, role: "img",
    "aria-label": `The last forward has ${rowsOf(last)} rows of ${last.members.length} pictures`,
  });
  picture.append(stripes());
  const labels = [];
  forwards.forEach((forward, column) => {
    const x = (NUM_SHOWN - forwards.length + column) * CELL;
    let y = most * CELL;
    const cell = (attributes, title) => {
      y -= CELL;
      const box = svg("rect", { x: x + 0.5, y: y + 0.5, width: CELL - 1, height: CELL - 1, rx: 1.5, ...attributes });
      box.append(svg("title", {}, title));
      picture.append(box);
    };
    for (const member of forward.members) {
      for (let i = 0; i < member.rows; i++) {
        cell({ fill: colour(member.request) }, `${memberText(member)}, forward ${forward.number}`);
        if (member.priority === "bulk") {
          picture.append(svg("rect", { x: x + 0.5, y: y + 0.5, width: CELL - 1, height: CELL - 1, fill: "url(#stripes)", "pointer-events": "none" }));
        }
      }
    }
    for (let i = 0; i < forward.padding_rows; i++) cell({ class: "padding" }, "only fills it up");
    if (forward.pixels !== forwards[column - 1]?.pixels) {
      labels.push({ column, x, text: pixelsText(forward.pixels) });
    }
  });
  let line = 0;
  labels.forEach(({ column, x, text }, i) => {
    line = i && column - labels[i - 1].column < LABEL ? 1 - line : 0; // beside one another, two lines
    picture.append(svg("text", { x, y: most * CELL + 11 + 10 * line }, text));
  });
  return picture;
}

/** Who is in the batch, of the size that the latest forwards tell. */
function members(inFlight, forwards) {
  const pixels = new Map();
  for (const forward of forwards) for (const member of forward.members) pixels.set(member.request, forward.pixels);
  const table = document.createElement("table");
  table.createCaption().textContent = inFlight.length ? "In the batch" : "Nothing in the batch";
  for (const member of inFlight) {
    const bar = Object.assign(document.createElement("progress"), { max: member.num_steps, value: member.step });
    bar.ariaLabel = `Steps of picture ${member.request}`;
    const swatch = svg("svg", { width: 12, height: 12, "aria-hidden": "true" });
    swatch.append(svg("rect", { width: 12, height: 12, rx: 2, fill: colour(member.request) }));
    const size = pixels.has(member.request) ? pixelsText(pixels.get(member.request)) : "";
    const tr = tableRow(`picture ${member.request}`, [
      swatch, member.priority, size, bar, `step ${member.step} of ${member.num_steps}`,
    ]);
    table.append(tr);
  }
  return table;
}

function memberText({ request, priority, step, num_steps }) {
  return `picture ${request} (${priority}), step ${step} of ${num_steps}`;
}

/** Pixels of a picture, as those of a square where they are one. */
function pixelsText(pixels) {
  const side = Math.sqrt(pixels);
  return Number.isInteger(side) ? `${side} × ${side}` : `${(pixels / 1e6).toFixed(2)} Mpx`;
}

/** Far from those of its neighbours: by the golden angle. */
const colour = (request) => `hsl(${(request * 137.5) % 360} 60% 55%)`;

const percent = (part, of) => `${of ? Math.round((100 * part) / of) : 0} %`;

function stripes() {
  const pattern = svg("pattern", { id: "stripes", width: 4, height: 4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  pattern.append(svg("rect", { width: 1.6, height: 4, fill: "rgb(0 0 0 / 45%)" }));
  return pattern;
}

function svg(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(text);
  return element;
}

function say(text) {
  if ($("engine-status").textContent !== text) $("engine-status").textContent = text;
}
