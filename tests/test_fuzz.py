"""Files of strangers, some thousand a kind by `make fuzz` (docs/trust.md): each is read, or refused in one message."""

import io
import json
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from bench_document import small_document
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from strangers import cases, changed_bytes, changed_document, held, strange
from tiny_artifact import write_changed_onnx, write_tiny_artifact
from tiny_onnx import write_tiny_onnx

from edc.benchmark.regression.compare import compare
from edc.benchmark.regression.saved_bench import load_saved
from edc.cli.tables.compare import print_comparison
from edc.data.parquet import load_parquet
from edc.data.webdataset import load_webdataset
from edc.deploy.artifact.manifest import MANIFEST_NAME
from edc.deploy.verify import verify
from edc.networks import Classifier, build_network
from edc.recipe import CheckpointSection, DataSection, NetworkSection
from edc.recipe.loading import load_recipe
from edc.teachers.formats import trusted_format
from edc.teachers.weights_file import weights_for
from edc.train.checkpoint import load_state

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
RECIPES = [yaml.safe_load(path.read_text()) for path in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))]
FULL: dict[str, Any] = {
    "name": "full",
    "data": {"kind": "synthetic", "image_size": 8, "extra": [{"kind": "synthetic", "num_images": 8}], "num_images": 64},
    "network": {"name": "timm/resnet18", "pretrained": True},
    "training": {"epochs": 4, "warmup_epochs": 1, "batch_size": 16, "layer_decay": 0.5, "factor_rate": 0.5},
    "teachers": {
        "checkpoints": [{"file": "a.pt", "mean": [0.5] * 3, "std": [0.5] * 3}, {"file": "b.pt2", "trust": True}]
    },
    "students": {
        "kd": {"method": "kd", "epochs": {"as_long_as": "be", "times": 2}},
        "be": {"perturbation": "tdiv_sdiv", "views": ["mixup"], "ema": 0.9, "training": {"learning_rate": 0.1}},
    },
    "deploy": "best",
}
YAML_TEXT = st.text(st.sampled_from(list("ab01:-[]{}&*!|>'\"%@`#,?~<=._ \n\t\\xéu")), max_size=60)
FIELDS = [
    "seed",
    "data.image_size",
    "data.extra.0.limit",
    "teachers.checkpoints.1.file",
    "students.kd.alpha",
    "network.name",
]


def png(side: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all cases; its caches are its own."""
    path = tmp_path_factory.mktemp("strangers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path / "cache"))
        yield path


@cases(200)
@given(document=st.one_of(*(changed_document(good) for good in [*RECIPES, FULL, FULL])))
def test_recipes(folder, document):
    (folder / "r.yaml").write_text(yaml.safe_dump(document, allow_unicode=True), errors="replace")
    held(lambda: load_recipe(folder / "r.yaml"))


@cases(200)
@given(
    content=st.one_of(
        YAML_TEXT.map(lambda text: (yaml.safe_dump(FULL) + text).encode()),
        YAML_TEXT.map(str.encode),
        changed_bytes(yaml.safe_dump(FULL).encode()),
    )
)
def test_recipes_as_bytes(folder, content):
    (folder / "r.yaml").write_bytes(content)
    held(lambda: load_recipe(folder / "r.yaml"))


@cases(200)
@given(
    fields=st.lists(st.sampled_from(FIELDS) | st.text(max_size=12), min_size=1, max_size=3),
    value=YAML_TEXT | strange.map(json.dumps),
)
def test_overrides(folder, fields, value):
    (folder / "full.yaml").write_text(yaml.safe_dump(FULL))
    held(lambda: load_recipe(folder / "full.yaml", overrides=[f"{field}={value}" for field in fields]))


@pytest.fixture(scope="module")
def artifact(folder: Path) -> tuple[Path, dict[str, Any]]:
    """An artifact that passes, and its manifest."""
    document = write_tiny_artifact(folder / "artifact")
    verify(folder / "artifact")
    return folder / "artifact", document


@cases(200)
@given(data=st.data())
def test_manifests(artifact, data):
    path, good = artifact
    document = data.draw(changed_document(good))
    content = json.dumps(document).encode()
    (path / MANIFEST_NAME).write_bytes(data.draw(st.just(content) | changed_bytes(content)))
    held(lambda: verify(path))


@cases(200)
@given(data=st.data())
def test_benches(folder, data):
    content = json.dumps(data.draw(changed_document(small_document()))).encode()
    (folder / "bench.json").write_bytes(data.draw(st.just(content) | changed_bytes(content)))
    held(lambda: load_saved(folder / "bench.json"))


@cases(200)
@given(data=st.data(), relative=st.booleans())
def test_comparisons(folder, data, relative):
    """`edc bench --compare`: a saved bench that somebody made, against one that ran here, and what is printed of it."""
    content = json.dumps(data.draw(changed_document(small_document()))).encode()
    (folder / "saved.json").write_bytes(data.draw(st.just(content) | changed_bytes(content)))

    def compared() -> None:
        found = compare(small_document(), load_saved(folder / "saved.json"), fail_on=0.05, relative=relative)
        print_comparison(found, console=Console(file=io.StringIO(), width=100))

    held(compared)


@cases(200)
@given(data=st.data())
def test_onnx_bytes(artifact, folder, data):
    path, good = artifact
    whole = write_tiny_onnx(folder / "whole.onnx").path.read_bytes()
    write_changed_onnx(path, data.draw(changed_bytes(whole)), good)
    held(lambda: verify(path))
    held(lambda: trusted_format(CheckpointSection(file=path / "student.onnx"), source="teachers.checkpoints.0"))


IMAGE = png(8)
NAMES = st.sampled_from(["a.jpg", "a.cls", "b.jpg", "b.cls", "._a.jpg", "d/a.b.png", "é.jpg", "a", ".jpg"]) | st.text(
    max_size=6
)
LABELS = st.sampled_from([b"0", b"1", b"-1", b"", b"0x1", b"1" * 20, b"\xff", "²".encode(), b" 1\n", b"999999999999"])


@st.composite
def shards(draw: Any) -> bytes:
    """Draws a tar archive of images, labels and whatever, perhaps with some bytes changed."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for _ in range(draw(st.integers(0, 4))):
            info = tarfile.TarInfo(draw(NAMES).replace("\0", "") or "x")
            content = draw(st.just(IMAGE) | LABELS | st.binary(max_size=8))
            info.size = len(content)
            info.type = draw(
                st.sampled_from([tarfile.REGTYPE] * 6 + [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
            )
            archive.addfile(info, io.BytesIO(content))
        for number in range(2):
            for name, content in ((f"good{number}.jpg", IMAGE), (f"good{number}.cls", str(number).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    whole = stream.getvalue()
    return draw(st.just(whole) | changed_bytes(whole[:6144]))


@cases(200)
@given(train=shards(), validation=shards(), bad=st.sampled_from([0.0, 0.9]), names=st.none() | st.binary(max_size=12))
def test_shards(folder, train, validation, bad, names):
    root = folder / "shards"
    root.mkdir(exist_ok=True)
    (root / "train-0.tar").write_bytes(train)
    (root / "val-0.tar").write_bytes(validation)
    (root / "classes.txt").unlink(missing_ok=True)
    if names is not None:
        (root / "classes.txt").write_bytes(names)
    section = DataSection(kind="webdataset", root=root, image_size=8, max_bad_fraction=bad)
    held(lambda: _looked_at(load_webdataset(section)))


ROWS = st.lists(
    st.tuples(
        st.sampled_from([IMAGE, b"", b"\x89PNG\r\n\x1a\n", IMAGE[:60], None]),
        st.integers(-2, 3) | st.sampled_from([None, 10**9, 2**62]),
    ),
    min_size=1,
    max_size=5,
)
METADATA = st.one_of(
    st.just(b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b", "c", "d"]}}}}'),
    changed_bytes(b'{"info": {"features": {"label": {"names": ["a", "b"]}}}}'),
    strange.map(lambda value: json.dumps({"info": {"features": {"label": value}}}).encode()),
    strange.map(lambda value: json.dumps(value).encode()),
)


@cases(200)
@given(rows=ROWS, metadata=METADATA, size=st.sampled_from([None, 8]), damage=st.integers(0, 3), data=st.data())
def test_parquet_rows(folder, rows, metadata, size, damage, data):
    root = folder / "parquet"
    root.mkdir(exist_ok=True)
    images = [None if content is None else {"bytes": content, "path": None} for content, _ in rows]
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {"image": pa.array(images, struct_type), "label": pa.array([label for _, label in rows], pa.int64())}
    )
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), root / "train-0.parquet")
    pq.write_table(table, root / "test-0.parquet")
    if not damage:
        path = root / "train-0.parquet"
        path.write_bytes(data.draw(changed_bytes(path.read_bytes())))
    section = DataSection(kind="parquet", root=root, image_size=size, validation=1)
    held(lambda: _looked_at(load_parquet(section)))


def _looked_at(data: Any) -> None:
    for images in (data.train, data.validation, data.test):
        if len(images):
            images.read_batch(torch.arange(len(images))) if hasattr(images, "read_batch") else images[0]


KEYS = st.sampled_from(
    ["state_dict", "model", "net", "ema", "module.a.weight", "a.weight", "", "a" * 500, "." * 50]
) | st.text(max_size=4)
TENSORS = st.sampled_from(
    [torch.zeros(2), torch.zeros(0), torch.ones(2, 3), torch.zeros((), dtype=torch.int64), torch.zeros(1).expand(9, 9)]
)
CONTAINERS = st.recursive(
    TENSORS | st.none() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(0, 3) | st.none(), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def network() -> Classifier:
    """What the weights of strangers are for."""
    how: Any = {"num_classes": 2, "image_shape": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return build_network(NetworkSection(name="wrn10x1"), **how)


@cases(200)
@given(document=CONTAINERS, is_zip=st.booleans(), holds_itself=st.booleans(), data=st.data())
def test_checkpoint_containers(folder, network, document, is_zip, holds_itself, data):
    if holds_itself and isinstance(document, dict):
        document["model"] = document
    stream = io.BytesIO()
    torch.save(document, stream, _use_new_zipfile_serialization=is_zip)
    for content in (stream.getvalue(), data.draw(changed_bytes(stream.getvalue()))):
        for name in ("c.pt", "c.safetensors", "c.pt2"):
            path = folder / name
            path.write_bytes(content)
            held(lambda path=path: trusted_format(CheckpointSection(file=path), source="teachers.checkpoints.0"))
            held(lambda path=path: load_state(path))
            held(lambda path=path: weights_for(network, path, source="teachers.checkpoints.0"))


@cases(200)
@given(
    header=changed_document({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    length=st.none() | st.integers(0, 2**63),
)
def test_safetensors(folder, header, length):
    text = json.dumps(header).encode(errors="replace")
    (folder / "s.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(8))
    held(lambda: load_state(folder / "s.safetensors"))
