// What the page asks of the service, and the token that it may want.

export class ServiceError extends Error {
  /** @param {string|null} field  the one to mend, by its name in a request */
  constructor(message, status, field) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

export const token = {
  get: () => sessionStorage.getItem("token") ?? "",
  set: (value) => sessionStorage.setItem("token", value),
};

const LOST = "The connection was lost.";

function headers() {
  const sendable = token.get().replace(/[^\x21-\x7e]/g, "?"); // no token has others
  return sendable ? { Authorization: `Bearer ${sendable}` } : {};
}

/** The JSON at `path`; `query` is of what is not empty. */
export async function get(path, query = {}, signal = null) {
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value));
  const response = await answer(`${path}?${asked}`, { headers: headers(), signal });
  return response.json();
}

/** A response that is no error. */
async function answer(path, options) {
  const response = await inWords(fetch(path, options), "The service does not answer.");
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** Browsers have words of their own for what breaks under way, and each others. */
async function inWords(underWay, words) {
  try {
    return await underWay;
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServiceError(words, null, null);
  }
}

/** Renders `request`; yields {preview, step, num_steps, num_ahead} on the way, then a {picture}. */
export function render({ start, ...request }, signal) {
  return start ? renderEdit(request, start, signal) : renderNew(request, signal);
}

async function* renderNew(request, signal) {
  const options = { body: JSON.stringify(request), headers: { "Content-Type": "application/json" } };
  for await (const { name, data } of events("imagine/events", options, signal)) {
    if (name === "progress") yield data;
    else yield { picture: await blobOf(data.image), tokensCut: data.tokens_cut };
  }
}

async function* renderEdit(request, start, signal) {
  for await (const { name, data } of events("v1/images/edits", { body: editForm(request, start) }, signal)) {
    const url = `data:image/png;base64,${data.b64_json}`;
    if (name.endsWith("partial_image")) yield { preview: url };
    else yield { picture: await blobOf(url), tokensCut: data.tokens_cut };
  }
}

function editForm(request, start) {
  const form = new FormData();
  const fields = { ...formFields(request), stream: true, partial_images: 3 };
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  form.append("image", start);
  return form;
}

/** A request as texts of a form, as the service reads them. The picture to start from has its own size. */
export function formFields({ width, height, ...request }) {
  return Object.fromEntries(Object.entries(request).map(([name, value]) => [name, fieldText(value)]));
}

function fieldText(value) {
  if (typeof value !== "object") return String(value);
  return Object.entries(value).map(([name, weight]) => `${name}:${weight}`).join();
}

/** Name and data of each event of a call, as they come; an `error` event is raised. */
async function* events(path, { body, headers: more = {} }, signal) {
  const response = await answer(path, { method: "POST", headers: { ...headers(), ...more }, body, signal });
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await inWords(reader.read(), LOST);
    if (done) throw new ServiceError(LOST, null, null); // the last event is for the caller to stop at
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const [, name, data] = part.match(/^event: (.*)\ndata: (.*)$/) ?? [];
      if (name === "error") throw errorIn(JSON.parse(data), 200);
      if (name) yield { name, data: JSON.parse(data) };
    }
  }
}

async function errorOf(response) {
  return errorIn(await response.json().catch(() => null), response.status);
}

function errorIn(answer, status) {
  const { message = `The service answered ${status}.`, param = null } = answer?.error ?? {};
  return new ServiceError(message, status, param);
}

// By hand, since the page's policy lets fetch() reach the service alone.
async function blobOf(dataUrl) {
  const [head, data] = dataUrl.split(",");
  const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
  return new Blob([bytes], { type: head.slice("data:".length, head.indexOf(";")) });
}
