// A request as code of other languages.

import { formFields } from "./service.js";

/** `request` without what only the page knows; `start` is set for a picture to start from. */
export function snippet(language, { start, ...request }, origin, needsToken) {
  return WRITERS[language](start ? formFields(request) : request, Boolean(start), origin, needsToken);
}

const WRITERS = { curl, requests: pythonRequests, openai: pythonOpenai };

function curl(request, isEdit, origin, needsToken) {
  const token = needsToken ? ' -H "Authorization: Bearer $API_TOKEN"' : "";
  if (isEdit) {
    const fields = Object.entries(request).map(([name, value]) => ` \\\n  --form-string ${quoted(`${name}=${value}`)}`);
    return `curl -f ${origin}/v1/images/edits${token} \\\n  -F image=@picture.png${fields.join("")} \\\n` +
      "  | python3 -c 'import base64, json, sys; open(\"out.png\", \"wb\").write(base64.b64decode(json.load(sys.stdin)[\"data\"][0][\"b64_json\"]))'";
  }
  return `curl -f -o picture.png ${origin}/imagine${token} \\\n  -H "Content-Type: application/json" \\\n  -d ${quoted(JSON.stringify(request))}`;
}

function pythonRequests(request, isEdit, origin, needsToken) {
  const token = needsToken ? ',\n    headers={"Authorization": f"Bearer {os.environ[\'API_TOKEN\']}"}' : "";
  const imports = needsToken ? "import os\n\n" : "";
  if (isEdit) {
    return `import base64\n${imports || "\n"}import requests

response = requests.post(
    "${origin}/v1/images/edits",
    data=${python(request)},
    files={"image": open("picture.png", "rb")}${token},
)
response.raise_for_status()
picture = base64.b64decode(response.json()["data"][0]["b64_json"])
open("out.png", "wb").write(picture)`;
  }
  return `${imports}import requests

response = requests.post(
    "${origin}/imagine",
    json=${python(request)}${token},
)
response.raise_for_status()
open("picture.png", "wb").write(response.content)`;
}

function pythonOpenai({ prompt, model, width, height, ...ours }, isEdit, origin, needsToken) {
  const key = needsToken ? 'os.environ["API_TOKEN"]' : '"any"';
  const lines = [
    isEdit ? '    image=open("picture.png", "rb"),\n' : "",
    `    prompt=${JSON.stringify(prompt)},\n`,
    model ? `    model=${JSON.stringify(model)},\n` : "",
    width ? `    size="${width}x${height}",\n` : "",
    Object.keys(ours).length ? `    extra_body=${python(ours)},\n` : "",
  ];
  return `import base64
${needsToken ? "import os\n" : ""}
from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key=${key})
response = client.images.${isEdit ? "edit" : "generate"}(
${lines.join("")})
open("${isEdit ? "out.png" : "picture.png"}", "wb").write(base64.b64decode(response.data[0].b64_json))`;
}

/** For a shell. */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Text, numbers and objects of them are written alike in JSON and Python. */
function python(fields) {
  return JSON.stringify(fields, null, 4).replaceAll("\n", "\n    ");
}
