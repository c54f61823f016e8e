"""`export/web`: the page in headless Chromium, against Pillow's pixels and `export/classify.py`'s probabilities.

`pytest tests/test_export_web.py -m slow -s` prints the differences that `export/web/README.md` quotes.
"""

import base64
import functools
import importlib.util
import io
import json
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import PIL
import pytest
from browser import Browser
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageOps, PngImagePlugin

from edc.data.files.decode import Reading, decode_image
from edc.deploy.artifact.manifest import ArtifactFile, Manifest, Preprocessing, write_manifest
from edc.system.files import sha256_of

EXPORT = Path(__file__).parents[1] / "export"
WEB = EXPORT / "web"
ORT_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
CLASSES = ("cat", "dog", "Ente", "crème brûlée", "<b>bold</b>", "fish", "a label much longer than the others")
# Before Pillow 13 the width was always scaled first, which changes a pixel by 1 of 255 where the height shrinks more.
PASS_ORDER = 0 if int(PIL.__version__.partition(".")[0]) >= 13 else 1

CROP = {"resize": "shorter_side_then_center_crop"}
RGB = Preprocessing(color="RGB", image_size=(12, 12), resize_shorter_side=15, **CROP)
GREY = Preprocessing(color="L", image_size=(8, 8), resize_shorter_side=8, **CROP)
BYTES = Preprocessing(color="RGB", image_size=(10, 14), resize="exact", layout="NHWC", dtype="uint8")


@pytest.fixture(scope="module")
def ort_folder(request: pytest.FixtureRequest) -> Path:
    """Return a folder with onnxruntime-web's files: the page's own, or one fetched once by the page's own command."""
    cached = request.config.cache.mkdir("onnxruntime-web")
    for folder in (WEB / "ort", cached / ort_version()):
        if all((folder / name).is_file() for name in ORT_FILES):
            return folder
    if not shutil.which("npm"):
        pytest.skip("npm is not installed: onnxruntime-web cannot be fetched")
    with tempfile.TemporaryDirectory(dir=cached) as temporary:
        done = subprocess.run(
            ["sh", "-c", ort_command()], cwd=temporary, capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("npm error")] or [done.stderr]
            pytest.skip(f"onnxruntime-web cannot be fetched: {errors[0]}")
        return Path(shutil.move(Path(temporary) / "ort", cached / ort_version()))


def ort_command() -> str:
    commands = re.findall(r"^    (mkdir -p ort .*)$", (WEB / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 1
    return commands[0]


def ort_version() -> str:
    versions = set(re.findall(r"onnxruntime-web[@-](\d+\.\d+\.\d+)", ort_command()))
    assert len(versions) == 1
    return versions.pop()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


# The site: a copy of the page beside small artifacts, as in the export folder.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, ort_folder: Path) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("export")
    copy_page(folder / "web")
    (folder / "web" / "ort").symlink_to(ort_folder)
    copy_page(folder / "no-ort")
    write_artifact(folder / "rgb", RGB, temperature=2.0, folded=False)
    write_artifact(folder / "grey", GREY, temperature=0.5, folded=True)
    write_artifact(folder / "bytes", BYTES, temperature=2.0, folded=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield SimpleNamespace(folder=folder, url=f"http://localhost:{server.server_port}", port=server.server_port)
        server.shutdown()
        thread.join()


def copy_page(folder: Path) -> None:
    files = [path for path in WEB.iterdir() if path.suffix in {".html", ".css", ".js"}]
    assert {path.name for path in files} >= {"index.html", "page.js", "style.css"}
    folder.mkdir()
    for path in files:
        shutil.copy(path, folder)


def write_artifact(folder: Path, how: Preprocessing, *, temperature: float, folded: bool) -> None:
    folder.mkdir()
    files = (
        write_network(folder / "student.onnx", how, role="student", seed=0),
        write_network(folder / "a teacher.onnx", how, role="teacher", seed=1),
    )
    manifest = Manifest(
        run="demo",
        recipe_sha256="0" * 64,
        created=datetime.now(UTC),
        versions={},
        classes=CLASSES,
        preprocessing=how,
        calibration_temperature=temperature,
        temperature_folded=folded,
        files=files,
    )
    write_manifest(folder, manifest)


def write_network(path: Path, how: Preprocessing, *, role: str, seed: int) -> ArtifactFile:
    """Write logits = weight . (pixels - 1/2), a few units apart, so that no probability is close to 0 or 1."""
    height, width = how.image_size
    channels = 3 if how.color == "RGB" else 1
    shape = (channels, height, width) if how.layout == "NCHW" else (height, width, channels)
    scale = 1.0 if how.dtype == "float32" else 1 / 255
    num_inputs = int(np.prod(shape))
    weight = np.random.default_rng(seed).normal(0, 6 / num_inputs**0.5, (num_inputs, len(CLASSES)))
    initializers = [
        numpy_helper.from_array((weight * scale).astype(np.float32), "weight"),
        numpy_helper.from_array((-0.5 * weight.sum(0)).astype(np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    element_type = TensorProto.FLOAT if how.dtype == "float32" else TensorProto.UINT8
    images = helper.make_tensor_value_info("images", element_type, ["batch", *shape])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])
    graph = helper.make_graph(nodes, "network", [images], [logits], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return ArtifactFile(
        path=path.name,
        role=role,
        format="onnx",
        precision="fp32",
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
    )


# The reference.


def photo(width: int, height: int) -> Image.Image:
    """Return a cut of a real photograph, which has edges and smooth parts and no symmetry."""
    return Image.open(in_package("sklearn", "datasets/images/china.jpg")).crop((100, 60, 100 + width, 60 + height))


def in_package(name: str, path: str) -> Path:
    """Return a file of a package without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / path


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def classify_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("classify", EXPORT / "classify.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference_rows(artifact: Path, image: Path, file: str | None = None) -> list[tuple[str, float]]:
    top = classify_py().Classifier(artifact, top=5, file=file).classify(image)["top"]
    return [(row["label"], row["probability"]) for row in top]


def shown_rows(browser: Browser) -> list[tuple[str, float]]:
    rows = browser.evaluate(
        "[...document.querySelectorAll('#classes li')].map((row) =>"
        " [row.querySelector('.label').textContent, Number(row.querySelector('data').value)])"
    )
    return [(label, probability) for label, probability in rows]


def open_artifact(browser: Browser, site: SimpleNamespace, artifact: str, more: str = "") -> None:
    browser.open(f"{site.url}/web/?artifact=../{artifact}/{more}")
    browser.wait_for("!document.getElementById('file').disabled")


def assert_shown(browser: Browser, expected: list[tuple[str, float]]) -> None:
    first = f"Most likely {expected[0][0]}, "
    browser.wait_for(f"document.getElementById('status').textContent.startsWith({json.dumps(first)})")
    shown = shown_rows(browser)
    assert [label for label, _ in shown] == [label for label, _ in expected]
    assert [p for _, p in shown] == pytest.approx([p for _, p in expected], rel=2e-5)
    percentages = browser.evaluate("[...document.querySelectorAll('#classes data')].map((row) => row.textContent)")
    assert percentages == [f"{probability:.2%}" for _, probability in expected]


SIZES = [(31, 47), (50, 20), (12, 12), (7, 5), (301, 200)]


@pytest.mark.parametrize("artifact", ["rgb", "grey", "bytes"])
def test_shown_probabilities_are_those_of_classify_py(browser, site, tmp_path, artifact):
    open_artifact(browser, site, artifact)
    assert browser.evaluate("document.getElementById('unverified').hidden")
    for number, (width, height) in enumerate(SIZES):
        image = photo(width, height) if number % 2 == 0 else photo(width, height).convert("L")
        path = saved(tmp_path / f"{width}x{height}.png", image)
        browser.choose(path)
        browser.wait_for(f"document.getElementById('photo-caption').textContent.startsWith({json.dumps(path.name)})")
        assert_shown(browser, reference_rows(site.folder / artifact, path))
    assert re.search(r"[\d.]+ ms for the network \(.*: this browser, this machine", browser.text(".answer"))
    assert browser.problems() == []
    allowed = (f"{site.url}/web/", f"{site.url}/{artifact}/", f"blob:{site.url}/")
    assert [url for url in browser.urls() if not url.startswith(allowed) and not url.startswith("data:")] == []


def test_dropped_and_pasted_images_and_another_file_of_the_artifact(browser, site, tmp_path):
    dropped, pasted = saved(tmp_path / "a.png", photo(40, 40)), saved(tmp_path / "b.png", photo(400, 300))
    open_artifact(browser, site, "rgb")
    browser.drop(dropped)
    assert_shown(browser, reference_rows(site.folder / "rgb", dropped))
    browser.evaluate(
        "const clipboardData = new DataTransfer();"
        f"clipboardData.items.add({file_in_page(pasted.read_bytes(), pasted.name)});"
        "void document.dispatchEvent(new ClipboardEvent('paste', {clipboardData}))"
    )
    browser.wait_for("document.getElementById('photo-caption').textContent.startsWith('b.png, 400')")
    assert_shown(browser, reference_rows(site.folder / "rgb", pasted))
    browser.evaluate(
        "const select = document.getElementById('files'); select.value = 'a teacher.onnx';"
        "void select.dispatchEvent(new Event('change'))"
    )
    browser.wait_for("document.getElementById('network').textContent.includes('a teacher.onnx')")
    assert_shown(browser, reference_rows(site.folder / "rgb", pasted, file="a teacher.onnx"))  # not calibrated
    assert browser.problems() == []


def broken(site: SimpleNamespace, name: str, *, sha: str | None = None, path: str = "student.onnx") -> Path:
    folder = shutil.copytree(site.folder / "rgb", site.folder / name)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][0].update({"path": path} if sha is None else {"path": path, "sha256": sha})
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no artifact", "/nowhere/manifest.json: not found; name an artifact in the address: ?artifact=../RUN/"),
        ("another server", "artifact=http://other.test/x/: expected a folder on this server, such as ../digits/"),
        ("no such file", "big.onnx: not an ONNX file of this artifact, which has student.onnx, a teacher.onnx"),
        ("changed byte", "student.onnx: SHA-256 differs from the manifest's; the file was changed after the export"),
        ("path outside", "../rgb/student.onnx: leaves the artifact's folder"),
        ("not ONNX", "student.onnx: onnxruntime-web refuses it: "),
        ("no ort", "onnxruntime-web is missing. In export/web, run:"),
    ],
)
def test_mistake_in_the_artifact_is_one_line(browser, site, case, message):
    url = f"{site.url}/web/?artifact=../rgb/"
    match case:
        case "no artifact":
            url = f"{site.url}/web/?artifact=../nowhere/"
        case "another server":
            url = f"{site.url}/web/?artifact=http://other.test/x"
            message = message.replace("/x/", "/x")
        case "no such file":
            url += "&file=big.onnx"
        case "changed byte":
            path = broken(site, "changed") / "student.onnx"
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
            url = f"{site.url}/web/?artifact=../changed"
        case "path outside":
            broken(site, "outside", path="../rgb/student.onnx")
            url = f"{site.url}/web/?artifact=../outside"
        case "not ONNX":
            digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of "x"
            (broken(site, "text", sha=digest) / "student.onnx").write_bytes(b"x")
            url = f"{site.url}/web/?artifact=../text"
        case "no ort":
            url = f"{site.url}/no-ort/?artifact=../rgb/"
    browser.open(url)
    browser.wait_for("!document.getElementById('error').hidden")
    shown = browser.text("#error").splitlines()
    assert shown[0].startswith(message)
    assert [line for line in shown[1:] if line] == ([ort_command()] if case == "no ort" else [])
    assert browser.evaluate("document.getElementById('file').disabled && document.getElementById('result').hidden")
    assert [problem for problem in browser.problems() if "404" not in problem] == []
    assert not any("other.test" in url.partition("?")[0] for url in browser.urls())


def test_mistake_in_the_image_is_one_line_and_the_next_image_works(browser, site, tmp_path):
    text, image = tmp_path / "text.png", saved(tmp_path / "image.png", photo(30, 30))
    text.write_text("not an image")
    gif = saved(tmp_path / "holes.gif", photo(30, 30).quantize(8), transparency=3)
    holes = "it has transparent parts, whose colours this browser cannot read; save it without them"
    open_artifact(browser, site, "rgb")
    for wrong, message in ((text, "not an image that this browser can read"), (gif, holes)):
        browser.choose(wrong)
        browser.wait_for("!document.getElementById('error').hidden")
        assert browser.text("#error") == f"{wrong.name}: {message}"
        assert browser.evaluate("document.getElementById('result').hidden")
        browser.choose(image)
        browser.wait_for("document.getElementById('error').hidden && !document.getElementById('result').hidden")
        assert_shown(browser, reference_rows(site.folder / "rgb", image))
    assert browser.problems() == []


def test_page_says_when_the_digest_could_not_be_checked(browser, site):
    (broken(site, "cut short") / "student.onnx").write_bytes(b"x")
    browser.open(f"http://demo.test:{site.port}/web/?artifact=../rgb/")  # neither https nor localhost
    browser.wait_for("!document.getElementById('file').disabled")
    assert browser.text("#unverified") == (
        "The file's SHA-256 was not checked: browsers do that on https and localhost only."
    )
    browser.open(f"http://demo.test:{site.port}/web/?artifact=../cut%20short/")
    browser.wait_for("!document.getElementById('error').hidden")
    assert "student.onnx: 1 bytes, the manifest says" in browser.text("#error")


# Pixels: what the page feeds to the network, against what classify.py does.


def file_in_page(content: bytes, name: str = "image") -> str:
    """Return JavaScript for a file with this content."""
    text = base64.b64encode(content).decode()
    return f"new File([Uint8Array.from(atob('{text}'), (c) => c.charCodeAt())], '{name}', {{type: 'image/x'}})"


def page_pixels(browser: Browser, content: bytes, how: Preprocessing, *, upright: bool | None = None) -> np.ndarray:
    """Return the page's preprocessed image (H, W, C)."""
    asked = "" if upright is None else f", {json.dumps(upright)}"
    encoded = browser.evaluate(
        "(async () => {"
        "  const { preprocess } = await import('./classify.js');"
        f" const how = {how.model_dump_json()};"
        f" const image = await preprocess({file_in_page(content)}, how{asked});"
        "  let text = '';"
        "  for (const byte of image.data) text += String.fromCharCode(byte);"
        "  return btoa(text);"
        "})()"
    )
    height, width = how.image_size
    return np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(height, width, -1)


def pillow_pixels(content: bytes, how: Preprocessing) -> np.ndarray:
    plain = {**how.model_dump(), "layout": "NHWC", "dtype": "uint8"}
    return classify_py().preprocess(io.BytesIO(content), plain)[0]


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def with_alpha(image: Image.Image) -> Image.Image:
    alpha = np.random.default_rng(0).integers(0, 256, (image.height, image.width, 1), dtype=np.uint8)
    alpha[: image.height // 2] = 0
    return Image.fromarray(np.concatenate([np.asarray(image), alpha], axis=2))


def with_gamma(png: bytes) -> bytes:
    """Return the PNG with a gamma of 1, which a browser applies unless told not to, and Pillow never."""
    chunk = b"gAMA" + struct.pack(">I", 100_000)
    return png[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def sixteen_bits() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**16, (31, 47), dtype=np.uint16)


def rgb_png_of_16_bits() -> bytes:
    """Return what Pillow cannot write: a PNG of 16 bits per colour."""
    pixels = np.random.default_rng(1).integers(0, 2**16, (20, 30, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


FILES = {
    "PNG": lambda: encoded(photo(301, 200), "PNG"),
    "PNG, grey": lambda: encoded(photo(301, 200).convert("L"), "PNG"),
    "PNG, grey, transparent": lambda: encoded(with_alpha(photo(301, 200)).convert("LA"), "PNG"),
    "PNG, grey, 16 bits": lambda: encoded(Image.fromarray(sixteen_bits()), "PNG"),
    "PNG, RGB, 16 bits": rgb_png_of_16_bits,
    "PNG, palette": lambda: encoded(photo(301, 200).quantize(64), "PNG"),
    "PNG, transparent": lambda: encoded(with_alpha(photo(301, 700 // 2)), "PNG"),
    "PNG, gamma": lambda: with_gamma(encoded(photo(301, 200), "PNG")),
    "PNG, turned by EXIF": lambda: encoded(photo(301, 200), "PNG", exif=exif(8)),
    "JPEG": lambda: encoded(photo(301, 201), "JPEG", quality=80),
    "JPEG, progressive": lambda: encoded(photo(301, 201), "JPEG", quality=80, progressive=True),
    "JPEG, grey": lambda: encoded(photo(301, 200).convert("L"), "JPEG"),
    "JPEG, turned by EXIF": lambda: encoded(photo(301, 200), "JPEG", exif=exif(6)),
    "JPEG, CMYK": lambda: encoded(photo(301, 201).convert("CMYK"), "JPEG"),
    "WebP": lambda: encoded(photo(301, 200), "WEBP", quality=80),
    "GIF": lambda: encoded(photo(301, 200).quantize(200), "GIF"),
}


@pytest.mark.parametrize("color", ["RGB", "L"])
def test_file_is_decoded_as_pillow_decodes_it(browser, site, color):
    browser.open(f"{site.url}/web/?artifact=../nowhere/")
    for name, content in ((name, make()) for name, make in FILES.items()):
        width, height = Image.open(io.BytesIO(content)).size
        how = Preprocessing(color=color, image_size=(height, width), resize="none")
        difference = np.abs(page_pixels(browser, content, how).astype(int) - pillow_pixels(content, how))
        assert difference.max() == 0, f"{name}: {difference.max()} of 255, mean {difference.mean():.4f}"


def test_photo_is_turned_upright_when_asked(browser, site):
    browser.open(f"{site.url}/web/?artifact=../nowhere/")
    how = Preprocessing(color="RGB", image_size=(40, 30), resize="none")
    # Flat colours, so that the JPEG's own losses are small.
    flat = Image.fromarray(np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, 10, 0), 10, 1))
    turned = encoded(flat, "JPEG", quality=100, exif=exif(6))
    upright = np.asarray(flat.transpose(Image.Transpose.ROTATE_270).convert("RGB")).astype(int)
    assert np.abs(page_pixels(browser, turned, how, upright=True) - upright).max() <= 2


def test_manifest_says_whether_images_are_turned_as_in_pillow(browser, site):
    browser.open(f"{site.url}/web/?artifact=../nowhere/")
    kinds = [(orientation, kind) for orientation in range(1, 9) for kind in ("JPEG", "PNG", "WEBP")]
    for orientation, kind in kinds:
        content = encoded(photo(31, 20), kind, exif=exif(orientation))
        for said, size in (("exif", (20, 31) if orientation < 5 else (31, 20)), ("stored", (20, 31))):
            how = Preprocessing(color="RGB", image_size=size, resize="none", orientation=said)
            pixels = page_pixels(browser, content, how)
            assert np.array_equal(pixels, pillow_pixels(content, how)), (orientation, kind, said)
            if said == "exif":
                with Image.open(io.BytesIO(content)) as image:
                    assert np.array_equal(pixels, np.asarray(ImageOps.exif_transpose(image).convert("RGB")))


def with_xmp(kind: str, orientation: int, **options: Any) -> bytes:
    """Returns a photo that says in its XMP data alone how it lies, as some editors of photos do."""
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="{orientation}"/></x:xmpmeta>'
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    else:
        options["xmp"] = xmp.encode()
    return encoded(photo(31, 20), kind, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_in_xmp_data_counts_where_exif_data_has_none_as_in_pillow(browser, site, kind):
    browser.open(f"{site.url}/web/?artifact=../nowhere/")
    for orientation, first, is_sideways in ((6, None, True), (3, None, False), (6, 1, False), (0, None, False)):
        content = with_xmp(kind, orientation, **({} if first is None else {"exif": exif(first)}))
        how = Preprocessing(
            color="RGB", image_size=(31, 20) if is_sideways else (20, 31), resize="none", orientation="exif"
        )
        expected = pillow_pixels(content, how)
        assert np.array_equal(expected, decode_image(content, "x", Reading())), (kind, orientation)
        assert np.array_equal(page_pixels(browser, content, how), expected), (kind, orientation, first)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_is_pillows_bit_for_bit(browser, site, interpolation):
    browser.open(f"{site.url}/web/?artifact=../nowhere/")
    rng = np.random.default_rng(0)
    for width, height in [(31, 47), (50, 20), (7, 5), (1, 9), (333, 222)]:
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))  # overshoots at every edge
        content = encoded(noise, "PNG")
        for size in [(12, 17), (61, 40)]:
            exact = Preprocessing(color="RGB", image_size=size, resize="exact", interpolation=interpolation)
            shorter = Preprocessing(
                color="L", image_size=size, resize_shorter_side=max(size) + 3, interpolation=interpolation, **CROP
            )
            for how in (exact, shorter):
                assert np.array_equal(page_pixels(browser, content, how), pillow_pixels(content, how)), (
                    how,
                    noise.size,
                )


@pytest.mark.parametrize(("width", "height"), [(1, 30_000), (1, 1_000_000)])
def test_image_too_long_to_scale_is_one_message_and_a_long_one_that_is_not_has_pillows_pixels(
    browser, site, width, height
):
    open_artifact(browser, site, "rgb")
    how = RGB.model_copy(update={"resize_shorter_side": 64})
    said = browser.evaluate(
        "(async () => {"
        "  const { preprocess } = await import('./classify.js');"
        f" const file = {file_in_page(encoded(Image.new('L', (width, height)), 'PNG'), 'long.png')};"
        f" try {{ await preprocess(file, {how.model_dump_json()}); return 'read'; }}"
        "  catch (error) { return error.message; }"
        "})()"
    )
    too_long = f"long.png: {width}x{height} pixels are too long to scale; crop it"
    unread = ["long.png: not an image that this browser can read"] * (height > 65_535)  # browsers have bounds, too
    assert said in [too_long, *unread]
    content = encoded(photo(3, 900), "PNG")
    assert np.array_equal(page_pixels(browser, content, RGB), pillow_pixels(content, RGB))


def real_images() -> dict[str, bytes]:
    """Return photographs that come with scikit-learn and matplotlib, as they are and enlarged as phones take them."""
    portrait = in_package("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")
    drawing = portrait.with_name("Minduka_Present_Blue_Pack.png")
    images = {"grace_hopper.jpg": portrait.read_bytes(), drawing.name: drawing.read_bytes()}
    for name in ("china.jpg", "flower.jpg"):
        whole = Image.open(in_package("sklearn", f"datasets/images/{name}"))
        for width in (24, 160, 640, 2560):
            size = (width, round(width * whole.height / whole.width))
            images[f"{name} at {size[0]}x{size[1]}"] = encoded(whole.resize(size), "JPEG", quality=90)
    return images


@pytest.mark.slow
def test_real_images_of_several_sizes_give_the_same_pixels_and_logits(browser, site, tmp_path):
    from edc.deploy.onnx.session import ort_session

    script = classify_py()
    for side in (8, 32, 224):
        how = Preprocessing(color="RGB", image_size=(side, side), resize_shorter_side=side * 8 // 7, **CROP)
        name = f"side{side}"
        write_artifact(site.folder / name, how, temperature=1.0, folded=True)
        open_artifact(browser, site, name)
        worst_pixel, worst_logit, scale = 0, 0.0, 0.0
        for image, content in real_images().items():
            path = tmp_path / "image"
            path.write_bytes(content)
            pixels = np.abs(page_pixels(browser, content, how).astype(int) - pillow_pixels(content, how))
            session = ort_session(site.folder / name / "student.onnx")
            reference = session.run(None, {"images": script.preprocess(path, how.model_dump())})[0][0]
            logits = np.array(page_logits(browser, content, how, f"../{name}/"))
            worst_pixel = max(worst_pixel, int(pixels.max()))
            worst_logit = max(worst_logit, float(np.abs(logits - reference).max()))
            scale = max(scale, float(np.abs(reference).max()))
            assert worst_pixel == 0, image
        print(f"{side}x{side}: pixels differ by at most {worst_pixel}, logits by {worst_logit:.1e} of {scale:.1f}")
        assert worst_logit <= 1e-5 * scale


def page_logits(browser: Browser, content: bytes, how: Preprocessing, artifact: str) -> list[float]:
    return browser.evaluate(
        "(async () => {"
        "  const page = await import('./classify.js');"
        "  const ort = await import('./ort/ort.wasm.bundle.min.mjs');"
        f" const how = {how.model_dump_json()};"
        f" const artifact = new URL({json.dumps(artifact)}, location.href);"
        "  const entry = page.chooseFile(await page.loadManifest(artifact), null);"
        "  const session = await page.openSession(ort, (await page.verifiedBytes(artifact, entry)).bytes, entry.path);"
        f" const image = await page.preprocess({file_in_page(content)}, how);"
        "  return (await page.runOnnx(session, page.tensorFromImage(ort, image, how))).logits;"
        "})()"
    )
