// The page: what its parts do together.

import { snippet } from "./code.js";
import { $, button, hasOption } from "./dom.js";
import * as engineView from "./engine_view.js";
import { Card, forgetAll, keep, showKept } from "./gallery.js";
import { readProvenance } from "./provenance.js";
import { get, render, token } from "./service.js";
import * as settings from "./settings.js";

const LOAD_AGAIN_AFTER_MS = 3000;
let loadingAgain;

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
  "Reuse settings": async (request) => {
    await restore(request);
    $("prompt").focus();
  },
  "Copy settings": ({ start, ...fields }) => copy(JSON.stringify(fields, null, 2), "Its settings are copied."),
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
  let isMade = false;
  const card = new Card("Waiting for those before it …", () => {
    if (isMade) return; // and about to be kept
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
        isMade = true;
        const kept = await keep(news, request.start, at);
        card.finish(kept, ACTIONS);
        const seconds = ((performance.now() - started) / 1000).toFixed(1);
        const told = `Rendered in ${seconds} s${kept.id === null ? "; this browser does not keep it." : "."}`;
        if (!settings.isWrong()) say(told); // what is to be mended is still to be read
        return;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") failed(error, request, at, card);
  } finally {
    places.give();
  }
}

function failed(error, request, at, card) {
  const text = settings.inWords(error);
  say(text, true);
  if (error.status === 401) askForToken();
  if ([400, 401, 413].includes(error.status)) card.remove(); // it is the form's to mend
  else card.fail(text, request, [button("Try again", () => { card.remove(); imagineOne(request, at); })]);
  settings.markWrong(error.field);
}

async function loadModel() {
  try {
    const { data } = await get("v1/models");
    const chosen = model();
    $("model").replaceChildren(...data.map(({ id }) => new Option(id)));
    $("model-row").hidden = data.length < 2;
    if (hasOption($("model"), chosen)) $("model").value = chosen;
    if (!$("token-row").hidden) $("prompt").focus();
    $("token-row").hidden = true;
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
  say(error.message, error.status !== 401 || Boolean(token.get()));
  clearTimeout(loadingAgain);
  if (error.status === 401) askForToken();
  else loadingAgain = setTimeout(loadModel, LOAD_AGAIN_AFTER_MS);
}

function askForToken() {
  location.hash = "#create";
  showView();
  $("token-row").hidden = false;
  $("token").focus();
}

async function startFrom(file) {
  const isPicture = $("file").accept.includes(file.type) && (await createImageBitmap(file).catch(() => null));
  if (!isPicture) return say("That is no PNG, JPEG or WebP picture.", true);
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
  settings.listen(showCode, () => say(""));
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    imagine();
  });
  $("form").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.target.type !== "textarea") return;
    event.preventDefault();
    $("form").requestSubmit();
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
    if (!confirm("Forget all pictures of this browser?")) return;
    forgetAll();
    $("prompt").focus();
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
