// An image file as the 8-bit pixels that Pillow would give for it: no colour management, turned by EXIF only if asked, and
// transparency dropped rather than blended. Of 16 bits the upper 8 are taken, as browsers do.

const ROWS_AT_ONCE = 256; // phones limit a canvas to fewer pixels than their cameras take
const EXIF_ORIENTATION = 0x0112;
const HIDDEN_COLORS = "it has transparent parts, whose colours this browser cannot read; save it without them";

/**
 * Returns the pixels of an image file in the wanted colours, row by row, channels last.
 * @param {Blob} file
 * @param {"RGB" | "L"} color
 * @param {boolean} upright turn a JPEG, PNG or WebP as its EXIF data says
 */
export async function decode(file, color, upright = false) {
  const source = await withoutTurn(file); // whether a browser turns depends on the browser and the format
  const bitmap = await createImageBitmap(source, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  try {
    const { width, height } = bitmap;
    const channels = color === "L" ? 1 : 3;
    const image = { width, height, channels, data: new Uint8Array(width * height * channels) };
    const isOpaque = copyByCanvas(bitmap, image);
    if (!isOpaque && (await isGif(file))) throw new RangeError(HIDDEN_COLORS); // browsers drop them while decoding
    if (!isOpaque) copyByWebgl(bitmap, image);
    return upright ? turned(image, await orientationOf(file)) : image;
  } finally {
    bitmap.close();
  }
}

async function isGif(file) {
  return (await file.slice(0, 4).text()) === "GIF8";
}

/** Returns the image turned as EXIF orientation 1 to 8 says. */
function turned(image, orientation) {
  if (orientation === 1) return image;
  const { width, height, channels, data } = image;
  const isSideways = orientation >= 5;
  const fromRight = [2, 3, 7, 8].includes(orientation);
  const fromBottom = [3, 4, 6, 7].includes(orientation);
  const [newWidth, newHeight] = isSideways ? [height, width] : [width, height];
  const upright = new Uint8Array(data.length);
  for (let y = 0, to = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++) {
      const [across, down] = isSideways ? [y, x] : [x, y];
      const column = fromRight ? width - 1 - across : across;
      const row = fromBottom ? height - 1 - down : down;
      const from = (row * width + column) * channels;
      for (let channel = 0; channel < channels; channel++, to++) upright[to] = data[from + channel];
    }
  }
  return { width: newWidth, height: newHeight, channels, data: upright };
}

/**
 * Returns the orientation of a JPEG, PNG or WebP, 1 to 8, by its EXIF data or, if that has none, its XMP data, as Pillow
 * does; 1, as it is, for everything else.
 */
export async function orientationOf(file) {
  const view = new DataView(await file.arrayBuffer());
  const value = findOrientation(view)?.value ?? orientationInXmp(view);
  return isTurn(value) ? value : 1;
}

const isTurn = (value) => value >= 1 && value <= 8;

function orientationInXmp(view) {
  const kind = kindOf(view);
  if (!kind) return 1;
  const end = kind === "JPEG" ? startOfScan(view) : view.byteLength;
  const text = new TextDecoder("latin1").decode(new Uint8Array(view.buffer, 0, end));
  return Number(/tiff:Orientation(?:="|>)([0-9])/.exec(text)?.[1] ?? 1);
}

function kindOf(view) {
  if (view.byteLength < 16) return null;
  if (view.getUint16(0) === 0xffd8) return "JPEG";
  if (view.getUint32(0) === 0x52494646 && view.getUint32(8) === 0x57454250) return "WebP";
  return view.getUint32(0) === 0x89504e47 ? "PNG" : null;
}

async function withoutTurn(file) {
  const view = new DataView(await file.arrayBuffer());
  const orientation = findOrientation(view);
  if (!orientation || orientation.value === 1 || !isTurn(orientation.value)) return file;
  view.setUint16(orientation.offset, 1, orientation.isLittleEndian);
  return new Blob([view.buffer], { type: file.type });
}

function findOrientation(view) {
  try {
    const tiff = findExif(view);
    if (tiff === null) return null;
    const isLittleEndian = view.getUint16(tiff) === 0x4949;
    const directory = tiff + view.getUint32(tiff + 4, isLittleEndian);
    const numEntries = view.getUint16(directory, isLittleEndian);
    for (let entry = directory + 2; entry < directory + 2 + 12 * numEntries; entry += 12) {
      if (view.getUint16(entry, isLittleEndian) !== EXIF_ORIENTATION) continue;
      return { value: view.getUint16(entry + 8, isLittleEndian), offset: entry + 8, isLittleEndian };
    }
    return null;
  } catch (error) {
    if (error instanceof RangeError) return null; // EXIF data that points past the end of the file says nothing
    throw error;
  }
}

/** Returns where the EXIF data of a JPEG, PNG or WebP starts, or null. */
function findExif(view) {
  const find = { JPEG: findExifInJpeg, WebP: findExifInWebp, PNG: findExifInPng }[kindOf(view)];
  return find ? find(view) : null;
}

function findExifInWebp(view) {
  let chunk = 12;
  while (chunk + 8 <= view.byteLength) {
    const length = view.getUint32(chunk + 4, true);
    // "Exif" with two zeros may stand before it, as in a JPEG.
    if (view.getUint32(chunk) === 0x45584946) return chunk + (view.getUint32(chunk + 8) === 0x45786966 ? 14 : 8);
    chunk += 8 + length + (length % 2);
  }
  return null;
}

function findExifInJpeg(view) {
  let segment = 2;
  while (view.getUint8(segment) === 0xff && view.getUint8(segment + 1) !== 0xda) {
    const isExif = view.getUint16(segment) === 0xffe1 && view.getUint32(segment + 4) === 0x45786966;
    if (isExif) return segment + 10;
    segment += 2 + view.getUint16(segment + 2);
  }
  return null;
}

/** Returns where the pixels of a JPEG begin, behind all that describes it. */
function startOfScan(view) {
  let segment = 2;
  while (segment + 4 <= view.byteLength && view.getUint8(segment) === 0xff && view.getUint8(segment + 1) !== 0xda) {
    segment += 2 + view.getUint16(segment + 2);
  }
  return Math.min(segment, view.byteLength);
}

function findExifInPng(view) {
  for (let chunk = 8; chunk < view.byteLength; chunk += 12 + view.getUint32(chunk)) {
    if (view.getUint32(chunk + 4) === 0x65584966) return chunk + 8;
  }
  return null;
}

/** Fills `image` from a canvas and returns whether every pixel was opaque; where one was not, its colour is inexact. */
function copyByCanvas(bitmap, image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = Math.min(image.height, ROWS_AT_ONCE);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.globalCompositeOperation = "copy";
  for (let row = 0; row < image.height; row += ROWS_AT_ONCE) {
    const numRows = Math.min(ROWS_AT_ONCE, image.height - row);
    context.drawImage(bitmap, 0, -row);
    const rgba = context.getImageData(0, 0, image.width, numRows).data;
    for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return false;
    copyRows(rgba, image, row);
  }
  return true;
}

/** Fills `image` through a texture, the one way to read colours that the transparency has not been multiplied into. */
function copyByWebgl(bitmap, image) {
  const gl = document.createElement("canvas").getContext("webgl");
  if (!gl || Math.max(image.width, image.height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new RangeError(HIDDEN_COLORS);
  }
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  for (let row = 0; row < image.height; row += ROWS_AT_ONCE) {
    const numRows = Math.min(ROWS_AT_ONCE, image.height - row);
    const rgba = new Uint8Array(image.width * numRows * 4);
    gl.readPixels(0, row, image.width, numRows, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
    copyRows(rgba, image, row);
  }
  gl.getExtension("WEBGL_lose_context")?.loseContext();
}

/** Copies RGBA pixels into `image` from row `row` on; grey is Pillow's ITU-R 601 luma in 16-bit fixed point. */
function copyRows(rgba, { width, channels, data }, row) {
  let to = row * width * channels;
  for (let from = 0; from < rgba.length; from += 4) {
    const red = rgba[from];
    const green = rgba[from + 1];
    const blue = rgba[from + 2];
    if (channels === 1) {
      data[to++] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    } else {
      data[to++] = red;
      data[to++] = green;
      data[to++] = blue;
    }
  }
}
