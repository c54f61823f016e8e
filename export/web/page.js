// The page: what a person chooses, drops or pastes goes through classify.js, and what comes out is shown.

import {
  UserError,
  chooseFile,
  loadManifest,
  openSession,
  preprocess,
  runOnnx,
  softmax,
  temperatureLeft,
  tensorFromImage,
  topClasses,
  verifiedBytes,
} from "./classify.js";
import { orientationOf } from "./decode.js";

const DEFAULT_ARTIFACT = "../digits/";
const TOP = 5;
const ORT_MODULE = "./ort/ort.wasm.bundle.min.mjs";
const ORT_WASM = "./ort/ort-wasm-simd-threaded.wasm";
const ORT_COMMAND =
  "mkdir -p ort && npm pack onnxruntime-web@1.30.0 --pack-destination ort && " +
  "tar -xzf ort/onnxruntime-web-1.30.0.tgz -C ort --strip-components=2 package/dist/ort.wasm.bundle.min.mjs " +
  "package/dist/ort-wasm-simd-threaded.wasm && rm ort/*.tgz";

class OrtMissing extends UserError {}

const element = (id) => document.getElementById(id);
const page = { ort: null, artifact: null, manifest: null, network: null, file: null };
let queue = Promise.resolve();

function main() {
  element("file").addEventListener("change", (event) => choose(event.target));
  element("upright").addEventListener("change", () => inTurn(classify));
  element("files").addEventListener("change", (event) => inTurn(() => openNetwork(event.target.value)));
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  document.addEventListener("dragover", allowDrop);
  document.addEventListener("dragleave", () => element("drop").classList.remove("over"));
  document.addEventListener("drop", drop);
  inTurn(start);
}

/** Does one thing after another. What a person can mend is shown as one line; a bug reaches the console as well. */
function inTurn(work) {
  queue = queue.then(work).catch((error) => {
    showError(error);
    if (!(error instanceof UserError)) reportError(error);
  });
}

async function start() {
  const parameters = new URLSearchParams(location.search);
  page.artifact = artifactUrl(parameters.get("artifact") ?? DEFAULT_ARTIFACT);
  page.ort = await loadOrt();
  page.manifest = await loadManifest(page.artifact);
  await openNetwork(parameters.get("file"));
}

function artifactUrl(text) {
  const url = URL.canParse(text, location.href) ? new URL(text, location.href) : null;
  if (url?.origin !== location.origin) {
    throw new UserError(`artifact=${text}: expected a folder on this server, such as ${DEFAULT_ARTIFACT}`);
  }
  url.pathname = url.pathname.replace(/\/?$/, "/");
  return url;
}

async function loadOrt() {
  say("Loading onnxruntime-web…");
  try {
    const [ort, wasm] = await Promise.all([import(ORT_MODULE), fetch(ORT_WASM, { method: "HEAD" })]);
    if (!wasm.ok) throw new OrtMissing();
    ort.env.wasm.numThreads = 1; // more would need headers that a plain file server does not send
    return ort;
  } catch (cause) {
    throw new OrtMissing("onnxruntime-web is missing. In export/web, run:", { cause });
  }
}

/** Opens the artifact's file `path`, by default the student's in fp32, and asks it about the image at hand, if any. */
async function openNetwork(path) {
  element("file").disabled = true;
  element("error").hidden = true;
  page.network = null;
  say("Loading the network…");
  const entry = chooseFile(page.manifest, path);
  const { bytes, isVerified } = await verifiedBytes(page.artifact, entry);
  const session = await openSession(page.ort, bytes, entry.path);
  page.network = { entry, session };
  showNetwork(entry, isVerified);
  element("file").disabled = false;
  say("Ready.");
  if (page.file) await classify();
}

function choose(input) {
  take(input.files);
  input.value = ""; // so that the same file can be chosen again
}

function take(files) {
  if (files.length === 0) return;
  [page.file] = files;
  inTurn(() => {
    element("upright").checked = page.manifest?.preprocessing.orientation === "exif";
    return classify();
  });
}

function allowDrop(event) {
  event.preventDefault();
  element("drop").classList.add("over");
}

function drop(event) {
  event.preventDefault();
  element("drop").classList.remove("over");
  if (event.dataTransfer.files.length > 0) return take(event.dataTransfer.files);
  inTurn(() => {
    throw new UserError("What was dropped is not a file; save the image first, or copy and paste it");
  });
}

/** Classifies the image at hand; before there is a network it waits, and `openNetwork` comes back to it. */
async function classify() {
  if (!page.network) return;
  const { file, manifest, network } = page;
  element("error").hidden = true;
  say("Classifying…");
  const before = performance.now();
  const image = await preprocess(file, manifest.preprocessing, element("upright").checked);
  const images = tensorFromImage(page.ort, image, manifest.preprocessing);
  const preparation_ms = performance.now() - before;
  const { logits, latency_ms, numRuns } = await runOnnx(network.session, images);
  const temperature = temperatureLeft(manifest, network.entry);
  const probabilities = softmax(logits.map((logit) => logit / temperature));
  await showPictures(file, image, await orientationOf(file));
  showClasses(topClasses(probabilities, manifest.classes, TOP));
  showTiming(latency_ms, numRuns, preparation_ms);
}

function showClasses(rows) {
  element("classes").replaceChildren(...rows.map(classRow));
  element("result").hidden = false;
  say(`Most likely ${rows[0].label}, ${percentage(rows[0].probability)}.`, { isForListenersOnly: true });
}

function classRow({ label, probability }) {
  const row = element("class-row").content.cloneNode(true);
  row.querySelector(".label").textContent = label;
  row.querySelector("data").value = probability;
  row.querySelector("data").textContent = percentage(probability);
  row.querySelector(".bar > span").style.width = `${probability * 100}%`;
  return row;
}

async function showPictures(file, image, orientation) {
  const photo = element("photo");
  URL.revokeObjectURL(photo.src);
  photo.src = URL.createObjectURL(file);
  photo.alt = `The chosen image, ${file.name}`;
  await photo.decode();
  photo.classList.toggle("small", photo.naturalWidth < 160);
  element("photo-caption").textContent = `${file.name}, ${size(photo.naturalWidth, photo.naturalHeight)}`;
  element("turn").hidden = orientation === 1;

  const { width, height } = image;
  const seen = element("seen");
  seen.width = width;
  seen.height = height;
  seen.classList.toggle("small", width < 160);
  seen.getContext("2d").putImageData(new ImageData(rgbaFromImage(image), width, height), 0, 0);
  const color = image.channels === 1 ? "grey" : "RGB";
  element("seen-caption").textContent = `What the network sees, ${size(width, height)} ${color}`;
}

function rgbaFromImage({ width, height, channels, data }) {
  const rgba = new Uint8ClampedArray(width * height * 4).fill(255);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let c = 0; c < 3; c++) rgba[pixel * 4 + c] = data[pixel * channels + (channels === 1 ? 0 : c)];
  }
  return rgba;
}

function showTiming(latency_ms, numRuns, preparation_ms) {
  const runs = numRuns === 1 ? "one run" : `median of ${numRuns} runs`;
  element("latency").textContent = milliseconds(latency_ms);
  element("timing").textContent =
    `for the network (${runs}), ${milliseconds(preparation_ms)} to read and scale the image: ` +
    "this browser, this machine, one thread.";
}

function showNetwork(entry, isVerified) {
  const { manifest } = page;
  document.title = `${manifest.run} · Classify an image`;
  element("network").textContent = `${manifest.run} · ${entry.path} · ${entry.precision}, ${bytesInWords(entry.bytes)}`;
  element("unverified").hidden = isVerified;
  const onnxFiles = manifest.files.filter((file) => file.format === "onnx");
  const options = onnxFiles.map((file) => new Option(`${file.path} (${file.role}, ${file.precision})`, file.path));
  element("files").replaceChildren(...options);
  element("files").value = entry.path;
  element("facts").replaceChildren(...Object.entries(factsOf(entry, isVerified)).flatMap(fact));
  element("about").hidden = false;
}

function factsOf(entry, isVerified) {
  const { manifest, ort } = page;
  const how = manifest.preprocessing;
  const [height, width] = how.image_size;
  const input = `${size(width, height)}, ${how.color === "L" ? "grey" : "RGB"}, ${how.dtype}`;
  return {
    Run: `${manifest.run}, exported ${manifest.created?.slice(0, 10) ?? "at an unknown date"}`,
    Input: `${input}; ${how.resize.replaceAll("_", " ")}, ${how.interpolation}`,
    Classes: String(manifest.classes.length),
    Calibration: calibrationInWords(entry),
    "SHA-256": isVerified ? "as the manifest says" : "not checked",
    Runtime: `onnxruntime-web ${ort.env.versions.web}, WebAssembly on the CPU`,
  };
}

function calibrationInWords(entry) {
  const { manifest } = page;
  const temperature = Number(manifest.calibration_temperature.toPrecision(4));
  if (entry.role !== "student") return "none: the temperature is the student's";
  return `temperature ${temperature}, ${manifest.temperature_folded ? "already in the file" : "applied by this page"}`;
}

function fact([term, description]) {
  const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
  dt.textContent = term;
  dd.textContent = description;
  return [dt, dd];
}

function say(text, { isForListenersOnly = false } = {}) {
  element("status").textContent = text;
  element("status").classList.toggle("visually-hidden", isForListenersOnly);
}

function showError(error) {
  element("result").hidden = true;
  element("message").textContent = error.message;
  element("command").hidden = !(error instanceof OrtMissing);
  element("command").textContent = ORT_COMMAND;
  element("error").hidden = false;
  say("");
}

const size = (width, height) => `${width}\u00a0×\u00a0${height}`;
const percentage = (probability) => `${(probability * 100).toFixed(2)}%`;
const milliseconds = (value_ms) => (value_ms < 0.05 ? "under 0.1 ms" : `${value_ms.toFixed(value_ms < 10 ? 1 : 0)} ms`);

function bytesInWords(numBytes) {
  const [value, unit] = numBytes < 1e6 ? [numBytes / 1e3, "kB"] : [numBytes / 1e6, "MB"];
  return `${Number(value.toPrecision(3))}\u00a0${unit}`;
}

main();
