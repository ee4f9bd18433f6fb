// The engine at work: its latest forwards, and who is in them.

import { get } from "./service.js";

const $ = (id) => document.getElementById(id);
const EVERY_MS = 1000;
const NUM_SHOWN = 48;
const CELL = 9;

const engines = new Map(); // by name: its forwards by number. The service may have several engines.
let timer = null;

export function start(model) {
  stop();
  const look = async () => {
    if (!document.hidden) await show(model()).catch((error) => say(error.message));
    if (timer !== null) timer = setTimeout(look, EVERY_MS);
  };
  timer = setTimeout(look, 0);
}

export function stop() {
  clearTimeout(timer);
  timer = null;
}

async function show(model) {
  const [stats, { engine, latest }] = await Promise.all([get("stats", { model }), get("forwards", { model })]);
  const known = engines.get(engine) ?? new Map();
  for (const forward of latest) known.set(forward.number, forward);
  const forwards = [...known.values()].sort((a, b) => a.number - b.number).slice(-NUM_SHOWN);
  engines.set(engine, new Map(forwards.map((forward) => [forward.number, forward])));
  const total = Object.values(stats.forwards_by_requests).reduce((sum, each) => sum + each, 0);
  const shared = total - (stats.forwards_by_requests[1] ?? 0);
  say(`${total} forwards so far, ${percent(shared, total)} of them shared; in forwards for ${stats.busy_s.toFixed(0)} s.`);
  showCounters(stats);
  $("engines").replaceChildren(...[...engines].flatMap(([name, each]) => engineView(name, [...each.values()])));
}

function showCounters(stats) {
  $("counters").hidden = false;
  $("counters").tBodies[0].replaceChildren(
    row("online", stats.online), row("bulk", stats.bulk),
    tableRow("padding", ["", "", "", stats.num_padding_rows]),
  );
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

function engineView(name, forwards) {
  if (!forwards.length) return [];
  const title = document.createElement("h2");
  title.textContent = `Engine ${name}: its last ${forwards.length} forwards`;
  return [title, strip(forwards), members(forwards)];
}

function strip(forwards) {
  const rowsOf = (forward) => forward.padding_rows + forward.members.reduce((sum, each) => sum + each.rows, 0);
  const most = Math.max(8, ...forwards.map(rowsOf));
  const last = forwards.at(-1);
  const picture = svg("svg", {
    class: "strip", viewBox: `0 0 ${NUM_SHOWN * CELL} ${most * CELL + 14}`, role: "img",
    "aria-label": `The last forward has ${rowsOf(last)} rows of ${last.members.length} pictures`,
  });
  picture.append(stripes());
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
      picture.append(svg("text", { x, y: most * CELL + 11 }, pixelsText(forward.pixels)));
    }
  });
  return picture;
}

/** Who is in the batch: the last word of each picture that is not done. */
function members(forwards) {
  const latest = new Map();
  for (const forward of forwards) {
    for (const member of forward.members) latest.set(member.request, { ...member, pixels: forward.pixels });
  }
  const now = [...latest.values()].filter(({ step, num_steps }) => step < num_steps);
  const table = document.createElement("table");
  table.createCaption().textContent = now.length ? "In the batch" : "Nothing in the batch";
  for (const member of now) {
    const bar = Object.assign(document.createElement("progress"), { max: member.num_steps, value: member.step });
    bar.ariaLabel = `Steps of picture ${member.request}`;
    const swatch = svg("svg", { width: 12, height: 12, "aria-hidden": "true" });
    swatch.append(svg("rect", { width: 12, height: 12, rx: 2, fill: colour(member.request) }));
    const tr = tableRow(`picture ${member.request}`, [
      swatch, member.priority, pixelsText(member.pixels), bar, `step ${member.step} of ${member.num_steps}`,
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
