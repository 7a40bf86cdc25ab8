"use strict";
// The page is a client of the API like any other: it sends what is asked for and reads the stream of events.

const $ = (name) => document.getElementById(name);
const picture = { image: null, bytes: null, drawn: false, mask: document.createElement("canvas") };
let models = [];
let running = null;
let last = null;

function headers() {
  const key = $("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

async function loadModels() {
  const answer = await fetch("/v1/models", { headers: headers() });
  if (!answer.ok) {
    say(answer.status === 401 ? "This server wants a key: give it under Key." : await fault(answer), true);
    return;
  }
  models = (await answer.json()).data;
  $("model").replaceChildren(...models.map((each) => new Option(each.id, each.id)));
  showModel();
  say("");
}

function showModel() {
  const model = models.find((each) => each.id === $("model").value);
  if (!model) return;
  $("steps").placeholder = model.defaults.steps;
  $("size").placeholder = `${model.defaults.width}x${model.defaults.height}`;
  $("guidance").disabled = model.guidance.kind === "none";
  $("guidance").placeholder = model.guidance.default ?? "";
}

async function fault(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status}`;
  }
}

function fields() {
  const found = { prompt: $("prompt").value, stream: true, partial_images: 3, output_format: $("format").value };
  const given = { model: "model", size: "size", seed: "seed", steps: "steps", guidance: "guidance" };
  for (const [name, id] of Object.entries(given)) {
    if ($(id).value !== "" && !$(id).disabled) found[name] = name === "model" || name === "size" ? $(id).value : Number($(id).value);
  }
  return found;
}

async function ask(signal) {
  const asked = fields();
  if (!picture.bytes) {
    const body = JSON.stringify(asked);
    return fetch("/v1/images/generations", { method: "POST", body, signal, headers: { ...headers(), "Content-Type": "application/json" } });
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(asked)) form.append(name, value);
  form.append("image", picture.bytes, "image");
  if ($("strength").value !== "") form.append("strength", $("strength").value);
  if (picture.drawn) {
    const mask = await new Promise((done) => picture.mask.toBlob(done, "image/png"));
    form.append("mask", mask, "mask.png");
  }
  return fetch("/v1/images/edits", { method: "POST", body: form, signal, headers: headers() });
}

// Server-sent events, and the comments between them, which tell each step.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const block = text.slice(0, end);
      text = text.slice(end + 2);
      if (block.startsWith(": step ")) {
        const [index, step, steps] = block.slice(7).split(" ").map(Number);
        yield { type: "step", index, step, steps };
      }
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data) yield JSON.parse(data);
    }
  }
}

function show(event) {
  const bytes = Uint8Array.from(atob(event.b64_json), (each) => each.charCodeAt(0));
  if (last) URL.revokeObjectURL(last);
  last = URL.createObjectURL(new Blob([bytes], { type: `image/${event.output_format}` }));
  $("picture").src = last;
  $("picture").hidden = false;
  $("empty").hidden = true;
}

function finish(event) {
  show(event);
  $("download").href = last;
  $("download").download = `flux-${event.seed}.${event.output_format === "jpeg" ? "jpg" : event.output_format}`;
  $("download").hidden = false;
  $("picture").alt = $("prompt").value;
  const guidance = event.guidance == null ? "" : `, guidance ${event.guidance}`;
  $("about").textContent = `${event.model}, ${event.size}, seed ${event.seed}, ${event.steps} steps${guidance}`;
  $("warnings").replaceChildren(...event.warnings.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
  say(`Done in ${event.seconds.toFixed(2)} s`);
}

async function paint(submitted) {
  submitted.preventDefault();
  if (running) return;
  running = new AbortController();
  $("paint").disabled = true;
  $("cancel").disabled = false;
  $("progress").hidden = false;
  $("progress").removeAttribute("value");
  $("download").hidden = true;
  $("warnings").replaceChildren();
  $("about").textContent = "";
  say("Waiting");
  try {
    const answer = await ask(running.signal);
    if (!answer.ok) throw new Error(await fault(answer));
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      if (event.type === "step") {
        $("progress").max = event.steps;
        $("progress").value = event.step;
        say(`Step ${event.step} of ${event.steps}`);
      } else if (event.type.endsWith(".partial_image")) show(event);
      else if (event.type.endsWith(".completed")) finish(event);
    }
  } catch (wrong) {
    if (wrong.name === "AbortError") say("Cancelled");
    else say(wrong.message, true);
  } finally {
    running = null;
    $("paint").disabled = false;
    $("cancel").disabled = true;
    $("progress").hidden = true;
  }
}

async function take() {
  const file = $("file").files[0];
  if (!file) return;
  try {
    picture.image = await createImageBitmap(file);
  } catch {
    say("That is no picture that this browser can read.", true);
    return;
  }
  picture.bytes = file;
  for (const each of [$("canvas"), picture.mask]) {
    each.width = picture.image.width;
    each.height = picture.image.height;
  }
  $("drawn").hidden = false;
  clearDrawing();
}

function drop() {
  Object.assign(picture, { image: null, bytes: null, drawn: false });
  $("file").value = "";
  $("drawn").hidden = true;
}

function clearDrawing() {
  picture.drawn = false;
  const mask = picture.mask.getContext("2d");
  mask.globalCompositeOperation = "source-over";
  mask.fillRect(0, 0, picture.mask.width, picture.mask.height);
  $("canvas").getContext("2d").drawImage(picture.image, 0, 0);
}

function draw(event) {
  if (!(event.buttons & 1) || !picture.image) return;
  const canvas = $("canvas");
  const box = canvas.getBoundingClientRect();
  const x = ((event.clientX - box.left) * canvas.width) / box.width;
  const y = ((event.clientY - box.top) * canvas.height) / box.height;
  const radius = ($("brush").value * canvas.width) / box.width;
  for (const [on, operation, colour] of [[canvas, "source-over", "#ff3d7f"], [picture.mask, "destination-out", "#000"]]) {
    const pen = on.getContext("2d");
    pen.globalCompositeOperation = operation;
    pen.fillStyle = colour;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
  }
  picture.drawn = true;
}

$("asked").addEventListener("submit", paint);
$("cancel").addEventListener("click", () => running && running.abort());
$("model").addEventListener("change", showModel);
$("key").addEventListener("change", loadModels);
$("file").addEventListener("change", take);
$("drop").addEventListener("click", drop);
$("clear").addEventListener("click", clearDrawing);
$("canvas").addEventListener("pointerdown", draw);
$("canvas").addEventListener("pointermove", draw);
loadModels();
