// An artifact of `edc export` and an image file, to probabilities. The same steps under the same names as
// ../classify.py, which is the reference; neither the page nor the document is touched here.

import { decode } from "./decode.js";
import { resize } from "./resize.js";

/** Shown as one line. */
export class UserError extends Error {}

const KNOWN = {
  color: ["RGB", "L"],
  layout: ["NCHW", "NHWC"],
  dtype: ["float32", "uint8"],
  resize: ["shorter_side_then_center_crop", "exact", "none"],
  interpolation: ["nearest", "bilinear", "bicubic", "lanczos"],
  orientation: ["exif", "stored", undefined], // older manifests do not say: stored
};

const MAX_PIXELS = 89478485; // after scaling

const MAX_RUNS = 20;
const MAX_TIMING_MS = 150;

/** Returns the manifest under `artifact`, a URL that ends in a slash. */
export async function loadManifest(artifact) {
  const bytes = await fetchBytes(artifact, "manifest.json", "; name an artifact in the address: ?artifact=../RUN/");
  const name = shown(new URL("manifest.json", artifact));
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new UserError(`${name}: not JSON: ${error.message}`);
  }
  if (manifest?.schema_version !== 1) throw new UserError(`${name}: not a manifest with schema_version 1`);
  for (const key of ["files", "classes", "preprocessing", "calibration_temperature"]) {
    if (!(key in manifest)) throw new UserError(`${name}: ${key} is missing`);
  }
  for (const [key, values] of Object.entries(KNOWN)) {
    const value = manifest.preprocessing[key];
    if (!values.includes(value)) {
      throw new UserError(`${name}: preprocessing.${key} is ${value}, this page knows ${values.join(", ")}`);
    }
  }
  return manifest;
}

/** Returns the entry of the wanted ONNX file, by default the student's in fp32. */
export function chooseFile(manifest, wanted) {
  const onnxFiles = manifest.files.filter((entry) => entry.format === "onnx");
  const isChosen = (entry) =>
    wanted === null ? entry.role === "student" && entry.precision === "fp32" : entry.path === wanted;
  const chosen = onnxFiles.find(isChosen);
  if (!chosen) {
    const names = onnxFiles.map((entry) => entry.path).join(", ") || "none";
    throw new UserError(`${wanted ?? "a student in fp32"}: not an ONNX file of this artifact, which has ${names}`);
  }
  return chosen;
}

/** Returns the file's bytes after checking that they are those that were exported, and whether SHA-256 could say so. */
export async function verifiedBytes(artifact, entry) {
  const parts = entry.path.split("/");
  if (entry.path.includes("\\") || parts.some((part) => ["", ".", ".."].includes(part))) {
    throw new UserError(`${entry.path}: leaves the artifact's folder`);
  }
  const bytes = await fetchBytes(artifact, parts.map(encodeURIComponent).join("/"));
  if (!globalThis.crypto?.subtle) {
    if (bytes.byteLength === entry.bytes) return { bytes, isVerified: false };
    throw new UserError(`${entry.path}: ${bytes.byteLength} bytes, the manifest says ${entry.bytes}`);
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  if (Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") !== entry.sha256) {
    throw new UserError(`${entry.path}: SHA-256 differs from the manifest's; the file was changed after the export`);
  }
  return { bytes, isVerified: true };
}

async function fetchBytes(artifact, path, advice = "") {
  const url = new URL(path, artifact);
  let response;
  try {
    response = await fetch(url, { cache: "no-cache" }); // asks the server again, so that a new export is seen
    if (response.ok) return await response.arrayBuffer();
  } catch {
    throw new UserError(`${shown(url)}: the server does not answer`);
  }
  const problem = response.status === 404 ? "not found" : `HTTP ${response.status}`;
  throw new UserError(`${shown(url)}: ${problem}${advice}`);
}

/** Returns a URL as people know it: its path on this server. */
function shown(url) {
  return decodeURI(url.pathname);
}

/** Returns the image as the manifest says, 8-bit and channels last; normalisation is inside the network. */
export async function preprocess(file, how, upright = how.orientation === "exif") {
  const [height, width] = how.image_size;
  let image;
  try {
    image = await decode(file, how.color, upright);
  } catch (error) {
    if (!(error instanceof DOMException || error instanceof RangeError)) throw error;
    const reason = error instanceof RangeError ? error.message : "not an image that this browser can read";
    throw new UserError(`${file.name}: ${reason}`);
  }
  if (how.resize === "shorter_side_then_center_crop") {
    const [shorter, longer] = [Math.min(image.width, image.height), Math.max(image.width, image.height)];
    if (Math.floor((how.resize_shorter_side ** 2 * longer) / shorter) > MAX_PIXELS) {
      throw new UserError(`${file.name}: ${image.width}x${image.height} pixels are too long to scale; crop it`);
    }
    image = resizeShorterSide(image, how.resize_shorter_side, how.interpolation);
    image = centerCrop(image, width, height);
  } else if (how.resize === "exact") {
    image = resize(image, width, height, how.interpolation);
  }
  if (image.width !== width || image.height !== height) {
    const sizes = `${image.width}x${image.height} pixels, this network takes ${width}x${height} only`;
    throw new UserError(`${file.name}: ${sizes}`);
  }
  return image;
}

/** Returns the image scaled so that its shorter side is `size`; the longer side is rounded down. */
function resizeShorterSide(image, size, interpolation) {
  const { width, height } = image;
  if (width <= height) return resize(image, size, Math.floor((size * height) / width), interpolation);
  return resize(image, Math.floor((size * width) / height), size, interpolation);
}

function centerCrop({ data, channels, ...from }, width, height) {
  const left = roundHalfToEven((from.width - width) / 2);
  const top = roundHalfToEven((from.height - height) / 2);
  const cropped = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * from.width + left) * channels;
    cropped.set(data.subarray(start, start + width * channels), y * width * channels);
  }
  return { width, height, channels, data: cropped };
}

/** Returns what Python's `round` returns. */
function roundHalfToEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Returns the network's input, a batch of one: the layout, type and value range that the manifest asks for. */
export function tensorFromImage(ort, { width, height, channels, data }, how) {
  const isPlanar = how.layout === "NCHW";
  const dims = isPlanar ? [1, channels, height, width] : [1, height, width, channels];
  const [low, high] = how.value_range;
  const isFloat = how.dtype === "float32";
  const values = isFloat ? new Float32Array(data.length) : new Uint8Array(data.length);
  const numPixels = width * height;
  for (let i = 0; i < data.length; i++) {
    const to = isPlanar ? (i % channels) * numPixels + Math.floor(i / channels) : i;
    const scaled = Math.fround(Math.fround(data[i] / 255) * Math.fround(high - low));
    values[to] = isFloat ? scaled + Math.fround(low) : data[i];
  }
  return new ort.Tensor(how.dtype, values, dims);
}

/** Returns a session for the file's bytes. */
export async function openSession(ort, bytes, path) {
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new UserError(`${path}: onnxruntime-web refuses it: ${firstLine(error)}`, { cause: error });
  }
}

function firstLine(error) {
  return String(error.message).split("\n", 1)[0];
}

/** Returns the logits of one image, and the median time of a run after the first, which makes room in memory. */
export async function runOnnx(session, images) {
  const feeds = { [session.inputNames[0]]: images };
  const times_ms = [];
  let outputs;
  try {
    outputs = await session.run(feeds);
  } catch (error) {
    throw new UserError(`onnxruntime-web cannot run the network: ${firstLine(error)}`, { cause: error });
  }
  const start = performance.now();
  do {
    const before = performance.now();
    outputs = await session.run(feeds);
    times_ms.push(performance.now() - before);
  } while (times_ms.length < MAX_RUNS && performance.now() - start < MAX_TIMING_MS);
  const logits = Array.from(outputs[session.outputNames[0]].data, Number);
  if (!logits.every(Number.isFinite)) throw new UserError("the network's outputs for this image are not finite numbers");
  return { logits, latency_ms: median(times_ms), numRuns: times_ms.length };
}

/** Returns what the logits must still be divided by: the temperature belongs to the student. */
export function temperatureLeft(manifest, entry) {
  return entry.role !== "student" || manifest.temperature_folded ? 1 : manifest.calibration_temperature;
}

export function softmax(logits) {
  const largest = Math.max(...logits);
  const exponentials = logits.map((logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}

/** Returns the `top` classes, most probable first; of equals, the first in the network's order. */
export function topClasses(probabilities, classes, top) {
  const best = probabilities.map((probability, index) => ({ label: classes[index], index, probability }));
  return best.sort((a, b) => b.probability - a.probability).slice(0, top);
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
