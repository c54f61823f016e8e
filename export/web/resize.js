// Pillow's Image.resize on 8-bit pixels, bit for bit: the browser's own scaling uses another filter and other rounding,
// and a network answers differently to differently scaled pixels.
//
// A filter is stretched by the reduction, so that every source pixel counts (antialiasing). Rows and columns are scaled
// one after the other, with weights as integers of 22 fractional bits and 8-bit pixels in between.

const PRECISION_BITS = 22;

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: (x) => cubic(Math.abs(x)) },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

/**
 * Returns the image scaled to width x height.
 * @param {{width: number, height: number, channels: number, data: Uint8Array}} image pixels row by row, channels last
 * @param {"nearest" | "bilinear" | "bicubic" | "lanczos"} interpolation
 */
export function resize(image, width, height, interpolation) {
  if (image.width === width && image.height === height) return image;
  if (interpolation === "nearest") return resizeNearest(image, width, height);
  const filter = FILTERS[interpolation];
  const scaleRows = (from) => resizeRows(from, weightsOf(filter, from.width, width));
  const scaleColumns = (from) => resizeColumns(from, weightsOf(filter, from.height, height));
  if (image.width === width) return scaleColumns(image);
  if (image.height === height) return scaleRows(image);
  return isHeightFirst(image, width, height) ? scaleRows(scaleColumns(image)) : scaleColumns(scaleRows(image));
}

/** Returns which comes first in Pillow 13; before that it was always the width, a difference of 1 of 255 at most. */
function isHeightFirst(image, width, height) {
  return height < image.height && image.height - height > 2 * (image.width - width);
}

/** Returns, for each output position, the first source position and the integer weights from there on. */
function weightsOf({ support, weight }, size, newSize) {
  const scale = size / newSize;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: newSize }, (_, position) => {
    const center = (position + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support * stretch + 0.5));
    const end = Math.min(size, Math.trunc(center + support * stretch + 0.5));
    const weights = new Float64Array(end - first);
    let sum = 0;
    for (let i = 0; i < weights.length; i++) {
      weights[i] = weight((i + first - center + 0.5) * (1 / stretch));
      sum += weights[i];
    }
    return { first, weights: Int32Array.from(weights, (w) => fixedPoint(sum === 0 ? w : w / sum)) };
  });
}

function fixedPoint(weight) {
  return Math.trunc(weight * 2 ** PRECISION_BITS + (weight < 0 ? -0.5 : 0.5));
}

function resizeRows({ width, height, channels, data }, weightsOfColumn) {
  const newWidth = weightsOfColumn.length;
  const scaled = new Uint8ClampedArray(newWidth * height * channels);
  for (let y = 0, to = 0; y < height; y++) {
    for (const { first, weights } of weightsOfColumn) {
      const start = (y * width + first) * channels;
      for (let channel = 0; channel < channels; channel++, to++) {
        scaled[to] = weightedSum(data, start + channel, channels, weights);
      }
    }
  }
  return { width: newWidth, height, channels, data: scaled };
}

function resizeColumns({ width, channels, data }, weightsOfRow) {
  const stride = width * channels;
  const scaled = new Uint8ClampedArray(stride * weightsOfRow.length);
  let to = 0;
  for (const { first, weights } of weightsOfRow) {
    for (let from = first * stride, end = from + stride; from < end; from++, to++) {
      scaled[to] = weightedSum(data, from, stride, weights);
    }
  }
  return { width, height: weightsOfRow.length, channels, data: scaled };
}

/** Returns sum_i weights[i] * data[start + i * step], rounded; the array that takes it cuts it to 0..255. */
function weightedSum(data, start, step, weights) {
  let sum = 1 << (PRECISION_BITS - 1);
  for (let i = 0, from = start; i < weights.length; i++, from += step) sum = (sum + data[from] * weights[i]) | 0;
  return sum >> PRECISION_BITS;
}

function resizeNearest({ width, height, channels, data }, newWidth, newHeight) {
  const columns = nearestPositions(width, newWidth);
  const scaled = new Uint8Array(newWidth * newHeight * channels);
  let to = 0;
  for (const y of nearestPositions(height, newHeight)) {
    for (const x of columns) {
      const from = (y * width + x) * channels;
      for (let channel = 0; channel < channels; channel++, to++) scaled[to] = data[from + channel];
    }
  }
  return { width: newWidth, height: newHeight, channels, data: scaled };
}

/** Returns the source position of each output position, adding up the step as Pillow does, rounding errors included. */
function nearestPositions(size, newSize) {
  const step = size / newSize;
  const positions = new Int32Array(newSize);
  for (let i = 0, position = step * 0.5; i < newSize; i++, position += step) positions[i] = Math.trunc(position);
  return positions;
}

/** Keys' cubic with a = -0.5, for x >= 0. */
function cubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}
