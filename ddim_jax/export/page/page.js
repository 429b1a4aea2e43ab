// The page: what is asked for in the form, the network's session, pictures on canvases.

import { draw } from "./sampler.js";
import { tokenizer } from "./tokenizer.js";

const form = document.getElementById("form");
const field = form.elements;
const said = document.getElementById("said");
const bar = document.getElementById("bar");
const pictures = document.getElementById("pictures");
const byId = (id) => document.getElementById(id);
const json = async (file) => (await fetched(file)).json();
const COUNTS = [1, 2, 4, 5, 10, 20];
const COLUMNS = { 1: 1, 2: 2, 4: 2, 5: 5, 10: 5, 20: 5 };

async function fetched(file) {
  const answer = await fetch(encodeURIComponent(file));
  if (!answer.ok) throw new Error(`${file} could not be loaded (${answer.status})`);
  return answer;
}

// --- the network ---------------------------------------------------------------------------------

const runtimes = new Map();
const sessions = new Map();
let site, last = Promise.resolve();

/** onnxruntime-web for "wasm" or "webgpu". */
function runtime(backend) {
  if (!runtimes.has(backend)) runtimes.set(backend, begin(backend));
  return runtimes.get(backend);
}

async function begin(backend) {
  const folder = new URL(site.runtime, import.meta.url).href;
  const ort = await import(`${folder}${backend === "webgpu" ? "ort.webgpu" : "ort.wasm"}.min.mjs`);
  ort.env.wasm.wasmPaths = folder;
  ort.env.wasm.numThreads = threads();
  return ort;
}

/** Threads of WebAssembly: half of the cores, where the page's headers allow any. */
function threads() {
  if (!self.crossOriginIsolated) return 1;
  const asked = Number(new URLSearchParams(location.search).get("threads"));
  const cores = navigator.hardwareConcurrency || 1;
  return asked > 0 ? asked : Math.max(1, Math.min(8, Math.floor(cores / 2)));
}

/** What belongs to a network: its session, manifest and tables. Sessions open one at a time. */
function load(name, backend) {
  const key = `${name} ${backend}`;
  if (!sessions.has(key)) {
    const opened = last.then(() => open(name, backend));
    last = opened.catch(() => sessions.delete(key));
    sessions.set(key, opened);
  }
  return sessions.get(key);
}

async function open(name, backend) {
  const begun = performance.now();
  const page = site.models.find((one) => one.name === name);
  const bytes = async (file) => new Uint8Array(await (await fetched(file)).arrayBuffer());
  const [ort, about, tables, network, decoder] = await Promise.all([
    runtime(backend), json(`${name}.onnx.json`), json(`${name}.onnx.tables.json`),
    bytes(`${name}.onnx`), page.decoder && bytes(page.decoder),
  ]);
  const options = { executionProviders: [backend], graphOptimizationLevel: "all" };
  const session = await ort.InferenceSession.create(network, options);
  const decoding = decoder && (await ort.InferenceSession.create(decoder, options));
  const decode = async (data, count) => {
    if (!decoding) return data;
    const sample = new ort.Tensor("float32", data, [count, ...about.sample_shape]);
    return (await decoding.run({ sample })).picture.data;
  };
  const tokens = about.tokenizer && tokenizer(about.tokenizer);
  return { ort, session, decode, tokens, about, tables, seconds: (performance.now() - begun) / 1000 };
}

const current = () => load(field.model.value, field.backend.value);

// --- the form ------------------------------------------------------------------------------------

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
  if (entries.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}

/** Fits the form to a network. */
function fit({ about, tables }) {
  const page = site.models.find((one) => one.name === field.model.value);
  const classes = Array.from({ length: about.classes }, (_, i) => [i, about.class_names[i] ?? i]);
  byId("label-row").hidden = !about.classes;
  byId("prompt-row").hidden = !page.prompts;
  byId("prompts").replaceChildren(...(page.prompts ?? []).map((text) => new Option(text, text)));
  if (page.prompts && !field.prompt.value) field.prompt.value = page.prompts[0] ?? "";
  options(field.label, [["each", "each in turn"], ...classes], field.label.value || "each");
  options(field.count, COUNTS.map((n) => [n, n]), page.count);
  const solvers = [...new Set(Object.keys(tables.tables).map((name) => name.split(":")[0]))];
  options(field.solver, solvers.map((name) => [name, name]), tables.default.split(":")[0]);
  fitSteps(tables, tables.default.split(":")[1]);
  byId("guidance-row").hidden = !page.guidance;
  if (page.guidance) {
    const { low, high, scale } = page.guidance;
    Object.assign(field.guidance, { min: low, max: high, step: 0.05, value: scale });
  }
  showGuidance();
}

function fitSteps(tables, chosen) {
  const own = Object.entries(tables.tables).filter(([name]) => name.startsWith(`${field.solver.value}:`));
  own.sort(([, a], [, b]) => a.nfe - b.nfe);
  const text = (steps, { nfe }) => (Number(steps) === nfe ? steps : `${steps} (${nfe} evaluations)`);
  const entries = own.map(([name, table]) => [name.split(":")[1], text(name.split(":")[1], table)]);
  options(field.steps, entries, chosen);
}

function showGuidance() {
  field.shown.value = Number(field.guidance.value).toFixed(2);
}

function seed() {
  const text = field.seed.value.trim();
  if (!/^\d+$/.test(text) || BigInt(text) >= 2n ** 64n) {
    throw new RangeError(`the seed must be a whole number in 0 to 2^64 - 1, not “${text}”`);
  }
  return BigInt(text);
}

/** What a table tells the network beside its rows. */
function toldBy(table, count) {
  const entries = Object.entries(table.told ?? {});
  return Object.fromEntries(entries.map(([name, value]) => [name, new Float32Array(count).fill(value)]));
}

/** What the form asks for, in the words of `draw`. */
function asked({ about, tables, tokens }) {
  const count = Number(field.count.value), told = {};
  const label = field.label.value;
  const labels = Array.from({ length: count }, (_, i) =>
    label === "each" ? i % Math.max(1, about.classes) : Number(label));
  if (about.inputs.label) told.label = Int32Array.from(labels);
  if (about.inputs.guidance) told.guidance = new Float32Array(count).fill(Number(field.guidance.value));
  let cut = false;
  if (tokens) {
    const text = tokens(field.prompt.value);
    told.text = Int32Array.from({ length: count * text.ids.length }, (_, i) => text.ids[i % text.ids.length]);
    cut = text.cut;
  }
  const table = tables.tables[`${field.solver.value}:${field.steps.value}`];
  Object.assign(told, toldBy(table, count));
  const named = labels.map((one) => about.class_names[one] ?? one);
  if (tokens) named.forEach((one, i) => (named[i] = `${field.prompt.value}, ${one}`));
  return { count, told, table, cut, seed: seed(), named: about.classes || tokens ? named : [] };
}

// --- pictures ------------------------------------------------------------------------------------

/** Paints samples in -1 to 1, [count, height, width, channels]. */
function paint(data, count, [height, width, channels]) {
  while (pictures.children.length > count) pictures.lastChild.remove();
  while (pictures.children.length < count) {
    const item = document.createElement("li");
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    item.append(canvas);
    pictures.append(item);
  }
  pictures.style.setProperty("--columns", COLUMNS[count]);
  for (let i = 0; i < count; i++) {
    const canvas = pictures.children[i].firstChild;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const image = new ImageData(width, height);
    for (let p = 0; p < width * height; p++) {
      for (let c = 0; c < 3; c++) {
        const value = data[(i * width * height + p) * channels + (channels === 3 ? c : 0)];
        image.data[4 * p + c] = Math.round(127.5 * (value + 1));
      }
      image.data[4 * p + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }
}

function describe({ named, seed }) {
  [...pictures.children].forEach((item, i) => {
    const what = named.length ? `${named[i]}, ` : "";
    item.firstChild.setAttribute("aria-label", `${what}picture ${i + 1} of seed ${seed}`);
  });
}

const painted = () => new Promise((done) => setTimeout(done));
let stop = null;

/** Draws what the form asks for; while it does, the button stops it. */
async function go() {
  if (stop) return stop.abort();
  stop = new AbortController();
  byId("draw").textContent = "Stop";
  byId("next").disabled = byId("save").disabled = true;
  try {
    const model = await current();
    const work = asked(model);
    bar.max = work.table.nfe;
    const begun = performance.now();
    let painting = 0;
    const progress = async (k, x0) => {
      bar.value = k + 1;
      const at = performance.now();
      if (painting < 0.2 * (at - begun)) {  // decoding of latents takes long
        paint(await model.decode(x0, work.count), work.count, model.about.picture_shape);
      }
      await painted();
      painting += performance.now() - at;
    };
    const { data, milliseconds } = await draw({ ...model, ...work, progress, signal: stop.signal });
    paint(await model.decode(data, work.count), work.count, model.about.picture_shape);
    describe(work);
    said.textContent = summary(work, milliseconds, performance.now() - begun);
    return data;
  } catch (error) {
    const stopped = error.name === "AbortError";
    said.textContent = stopped ? "Stopped." : `Not drawn: ${error.message}`;
    if (!stopped && !(error instanceof RangeError)) console.error(error);
  } finally {
    stop = null;
    byId("draw").textContent = "Draw";
    byId("next").disabled = byId("save").disabled = false;
  }
}

function summary({ count, table, cut }, milliseconds, whole) {
  const many = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  const each = count > 1 ? `, ${(milliseconds / count).toFixed(0)} ms a picture` : "";
  const seen = whole - milliseconds > 20 ? ` (${whole.toFixed(0)} ms with drawing)` : "";
  return `${many(count, "picture")}, ${many(table.nfe, "evaluation")}: ${milliseconds.toFixed(0)} ms${each}${seen}.${cut ? " The prompt is too long: its end was left out." : ""}`;
}

function save() {
  const tiles = [...pictures.children].map((item) => item.firstChild);
  const columns = COLUMNS[tiles.length] ?? 1, { width, height } = tiles[0];
  const sheet = document.createElement("canvas");
  Object.assign(sheet, { width: columns * width, height: Math.ceil(tiles.length / columns) * height });
  const context = sheet.getContext("2d");
  tiles.forEach((tile, i) =>
    context.drawImage(tile, (i % columns) * width, Math.floor(i / columns) * height));
  const link = document.createElement("a");
  Object.assign(link, { href: sheet.toDataURL("image/png"), download: `${field.model.value}-${field.seed.value}.png` });
  link.click();
}

// --- what Python drew ----------------------------------------------------------------------------

/** Draws what Python drew; table -> the largest difference. Tests call it too. */
async function compare(name = field.model.value, backend = field.backend.value) {
  const [model, check] = [await load(name, backend), await json(`${name}.check.json`)];
  const found = {};
  for (const { table, wanted, told } of check.cases) {
    const typed = Object.fromEntries(Object.entries(told).map(([key, values]) =>
      [key, model.about.inputs[key].dtype === "int32" ? Int32Array.from(values) : Float32Array.from(values)]));
    const asked = { table: model.tables.tables[table], seed: BigInt(check.seed), count: check.count };
    const { data } = await draw({ ...model, ...asked, told: typed });
    found[table] = data.reduce((most, v, i) => Math.max(most, Math.abs(v - wanted[i])), 0);
  }
  return found;
}

/** Milliseconds of drawing, of each of several times; for benchmarks. */
async function time({ name, table, count = 1, repeats = 8, guidance = 1, prompt = "", backend = "wasm" }) {
  const model = await load(name, backend), taken = [];
  const told = toldBy(model.tables.tables[table], count);
  if (model.about.inputs.label) told.label = Int32Array.from({ length: count }, (_, i) => i % model.about.classes);
  if (model.about.inputs.guidance) told.guidance = new Float32Array(count).fill(guidance);
  if (model.tokens) told.text = Int32Array.from(Array(count).fill([...model.tokens(prompt).ids]).flat());
  for (let i = 0; i < repeats; i++) {
    const begun = performance.now();
    const { data } = await draw({ ...model, table: model.tables.tables[table], seed: BigInt(i), count, told });
    await model.decode(data, count);
    taken.push(performance.now() - begun);
  }
  return taken;
}

async function showComparison() {
  byId("compared").textContent = "Drawing what Python drew";
  const found = await compare().catch((error) => ({ [error.message]: NaN }));
  byId("compared").textContent = Object.entries(found)
    .map(([table, apart]) => `${table}: at most ${apart.toExponential(1)} apart`).join("; ");
}

// --- beginning -----------------------------------------------------------------------------------

async function change() {
  said.textContent = "Loading the network";
  const chosen = `${field.model.value} ${field.backend.value}`;
  const overtaken = () => chosen !== `${field.model.value} ${field.backend.value}`;
  try {
    const model = await current();
    if (overtaken()) return;
    fit(model);
    said.textContent = `Loaded in ${model.seconds.toFixed(1)} s.`;
    return true;
  } catch (error) {
    if (overtaken()) return;
    said.textContent = `Not loaded: ${error.message}`;
    console.error(error);
  }
}

form.addEventListener("submit", (event) => (event.preventDefault(), go()));
field.guidance.addEventListener("input", showGuidance);
field.model.addEventListener("change", change);
field.backend.addEventListener("change", change);
field.solver.addEventListener("change", async () => fitSteps((await current()).tables, field.steps.value));
byId("save").addEventListener("click", save);
byId("compare").addEventListener("click", showComparison);
byId("next").addEventListener("click", () => {
  field.seed.value = String((BigInt(/^\d+$/.test(field.seed.value.trim()) ? field.seed.value : 0) + 1n) % 2n ** 64n);
  go();
});

site = await json("site.json");
options(field.model, site.models.map(({ name }) => [name, name]));
byId("model-row").hidden = site.models.length === 1;
byId("backend-row").hidden = !(navigator.gpu && (await navigator.gpu.requestAdapter().catch(() => null)));
byId("where").textContent = `Made by ddim_jax ${site.version}. WebAssembly with ${threads()} thread${threads() > 1 ? "s" : ""}.`;
if (await change()) await go();
window.page = { compare, time, ready: true, first: performance.now() };
navigator.serviceWorker?.register("service-worker.js").catch(() => {}); // it works without, online
