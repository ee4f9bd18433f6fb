// The page: what its parts do together.

import { snippet } from "./code.js";
import { $, button, hasOption } from "./dom.js";
import * as engineView from "./engine_view.js";
import { Card, forgetAll, keep, showKept } from "./gallery.js";
import { readProvenance } from "./provenance.js";
import { ServiceError, get, render, token } from "./service.js";
import * as settings from "./settings.js";

const model = () => $("model").value;

// A browser opens six connections to a service; what asks for its state needs some, too.
const places = {
  free: 4,
  waiting: [],
  async take() {
    if (this.free) this.free--;
    else await new Promise((go) => this.waiting.push(go));
  },
  give() {
    const next = this.waiting.shift();
    if (next) next();
    else this.free++;
  },
};

// What can be done with a picture of the gallery.
const ACTIONS = {
  Reuse: async (request) => {
    await restore(request);
    $("prompt").focus();
  },
  Copy: ({ start, ...fields }) => copy(JSON.stringify(fields, null, 2), "Its settings are copied."),
  "Start from it": (_, picture) => startFrom(picture),
};

function imagine() {
  settings.markWrong(null);
  say("");
  settings.nextSeed();
  showCode();
  const request = settings.request();
  // The first stands first, since each goes before those that are there.
  const at = Date.now();
  for (let i = Number($("count").value) - 1; i >= 0; i--) {
    imagineOne({ ...request, seed: request.seed + i }, at - i / 1000);
  }
}

async function imagineOne(request, at) {
  const controller = new AbortController();
  const card = new Card("Waiting for those before it …", () => {
    controller.abort();
    card.remove();
  });
  await places.take();
  card.say("Starting …");
  const started = performance.now();
  try {
    for await (const news of render(request, controller.signal)) {
      if (!news.picture) card.show(news);
      else {
        card.setButtons([]);
        const kept = await keep(news.picture, request.start, at);
        card.finish(kept, ACTIONS);
        const seconds = ((performance.now() - started) / 1000).toFixed(1);
        say(`Rendered in ${seconds} s${kept.id === null ? "; this browser does not keep it." : "."}`);
        return;
      }
    }
    throw new Error("The connection was lost.");
  } catch (error) {
    if (error.name !== "AbortError") failed(error, request, at, card);
  } finally {
    places.give();
  }
}

function failed(error, request, at, card) {
  say(error.message, true);
  if (error.status === 401) askForToken();
  if (error.status === 400 || error.status === 401) card.remove(); // it is the form's to mend
  else card.fail(error.message, [button("Try again", () => { card.remove(); imagineOne(request, at); })]);
  settings.markWrong(error.field);
}

async function loadModel() {
  try {
    const { data } = await get("v1/models");
    const chosen = model() || data[0].id;
    $("model").replaceChildren(...data.map(({ id }) => new Option(id, data.length > 1 ? id : "")));
    $("model-row").hidden = data.length < 2;
    if (data.length > 1) $("model").value = chosen;
    await loadProfile();
  } catch (error) {
    failedToLoad(error);
  }
}

/** Returns whether the form is now that of the chosen model. */
async function loadProfile() {
  const asked = model();
  const slow = setTimeout(() => say("The model is being loaded …"), 500);
  try {
    const { profile } = await get("profile", { model: asked });
    if (asked !== model()) return false; // another was chosen meanwhile
    settings.setProfile(profile);
    say("");
    showCode();
    return true;
  } catch (error) {
    failedToLoad(error);
    return false;
  } finally {
    clearTimeout(slow);
  }
}

function failedToLoad(error) {
  if (error.status === 401) askForToken();
  say(error instanceof ServiceError ? error.message : "The service does not answer.", error.status !== 401);
}

function askForToken() {
  location.hash = "#create";
  showView();
  $("token-row").hidden = false;
  $("token").focus();
}

function startFrom(file) {
  if (!settings.setStart(file)) return say("This model starts from no picture.", true);
  showCode();
  say("The next picture starts from it.");
  $("strength").focus();
}

async function restore({ model: made, ...request }) {
  const isServed = hasOption($("model"), made);
  if (isServed && made !== model()) {
    $("model").value = made;
    if (!(await loadProfile())) return;
  }
  const missing = [...(isServed ? [] : [made]), ...settings.restore(request)];
  showCode();
  say(`Its settings are back in the form${missing.length ? `, but for ${missing.join(", ")}` : ""}. `);
}

/** One made here brings its settings, any other is one to start from. */
async function open(file) {
  const made = await readProvenance(file);
  if (!made) return startFrom(file);
  await restore({ ...made.request, model: made.model });
  if (!$("start-row").hidden) $("status").append(button("Start from it instead", () => startFrom(file)));
}

function showCode() {
  const chosen = document.querySelector("[role=tab][aria-selected=true]");
  const { origin, pathname } = location;
  const request = settings.request();
  const text = snippet(chosen.id.slice("tab-".length), request, origin + pathname.replace(/\/$/, ""), Boolean(token.get()));
  $("snippet").textContent = text;
}

function chooseTab(tab) {
  for (const each of document.querySelectorAll("[role=tab]")) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
  }
  $("snippet").setAttribute("aria-labelledby", tab.id);
  showCode();
}

function moveBetweenTabs(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const next = tabs.at((tabs.indexOf(event.target) + by) % tabs.length);
  chooseTab(next);
  next.focus();
}

async function copy(text, done) {
  try {
    await navigator.clipboard.writeText(text);
    say(done);
  } catch { // browsers allow it on https and on localhost alone
    say("This browser copies nothing from a page without https.", true);
  }
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

function showView() {
  const isEngine = location.hash === "#engine";
  $("create").hidden = isEngine;
  $("engine").hidden = !isEngine;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === (isEngine ? "#engine" : "#create")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (isEngine) engineView.start(model);
  else engineView.stop();
}

function listen() {
  settings.listen(showCode);
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    imagine();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
  $("model").addEventListener("change", loadProfile);
  $("token").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // it asks for no picture
    $("token").blur();
  });
  $("token").addEventListener("change", () => {
    token.set($("token").value);
    loadModel();
  });
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) open($("file").files[0]);
    $("file").value = "";
  });
  $("forget").addEventListener("click", () => {
    if (confirm("Forget all pictures of this browser?")) forgetAll();
  });
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.addEventListener("click", () => chooseTab(tab));
    tab.addEventListener("keydown", moveBetweenTabs);
  }
  $("copy-code").addEventListener("click", () => copy($("snippet").textContent, "The code is copied."));
  addEventListener("hashchange", showView);
  const hasFile = (event) => event.dataTransfer.types.includes("Files"); // and not text, say
  addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    location.hash = "#create";
    document.body.classList.remove("dropping");
    const file = [...event.dataTransfer.files].find(({ type }) => type.startsWith("image/"));
    if (file) open(file);
    else say("That is no picture.", true);
  });
}

listen();
showView();
showKept(ACTIONS);
loadModel();
