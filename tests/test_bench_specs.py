"""Which rows a bench has: every subject, in the precisions that a backend really computes in."""

from pathlib import Path

import pytest

from edc.benchmark.backends import BACKENDS
from edc.benchmark.backends.contract import EngineSource, OnnxSource, TorchSource
from edc.benchmark.specs import also_specs, row_specs
from edc.deploy.artifact.manifest import Manifest
from edc.errors import RequestError
from edc.recipe import Recipe
from edc.runs.folder import RunFolder
from edc.subject import Subject

HERE, RUN = Path("export/main"), Path("runs/main")
RECIPE = Recipe.model_validate(
    {
        "name": "main",
        "data": {"kind": "synthetic", "image_size": 8, "num_images": 32, "test": 24},
        "network": "wrn10x1",
        "teachers": {"ensemble_size": 2},
        "students": {"kd": {"method": "kd"}, "be": {"method": "latent_be"}},
        "deploy": "be",
    }
)
IMAGES = {"color": "RGB", "image_size": [8, 8], "resize": "exact"}


def manifest(*files: tuple[str, str, str], seed: int = 0, recipe: Recipe = RECIPE, **changes: object) -> Manifest:
    """Returns a manifest of (role, format, precision) files, whose digests follow from `seed`."""
    content = {
        "run": recipe.name,
        "recipe_sha256": recipe.digest(),
        "created": "2026-11-22T12:00:00+00:00",
        "versions": {},
        "classes": ["a", "b"],
        "preprocessing": IMAGES,
        "calibration_temperature": 1.0,
        "temperature_folded": True,
        "files": [
            {
                "path": f"{number}.{kind}",
                "role": role,
                "format": kind,
                "precision": precision,
                "sha256": f"{100 * seed + number:064x}",
                "bytes": 1,
            }
            for number, (role, kind, precision) in enumerate(files)
        ],
    }
    return Manifest.model_validate({**content, **changes})


ROLES = ("teacher", "teacher", "ensemble", "student")
ONNX = tuple((role, "onnx", precision) for precision in ("fp32", "fp16", "int8-cpu", "int8-trt") for role in ROLES)
ENGINES = tuple(
    (role, "tensorrt", precision) for precision in ("tf32", "fp16", "int8-trt") for role in ("student", "ensemble")
)
FORMS = ("teacher 0", "ensemble, in turn", "ensemble, merged", "be")


def labels(files: Manifest, *backends: str) -> list[str]:
    return [spec.subject.label for spec in row_specs(HERE, files, RECIPE, RUN, backends, None)]


def test_torch_compile_runs_what_the_comparison_needs_and_no_more():
    """Each of its rows compiles for a minute or so."""
    assert labels(manifest(*ONNX), "torch-compile") == ["teacher 0", "ensemble, in turn", "be"]


@pytest.mark.parametrize("backend", ["torch", "torch-cuda"])
def test_torch_runs_the_networks_of_the_run_and_members_before_their_fold(backend):
    specs = row_specs(HERE, manifest(*ONNX), RECIPE, RUN, [backend], Path("data"))
    found = {spec.subject.label: spec.source for spec in specs}
    wanted = {"teacher 0": Subject("teacher", member=0), "ensemble, in turn": Subject("ensemble")}
    wanted |= {"kd": Subject("student", name="kd"), "be": Subject("student", name="be")}
    wanted |= {"be (members)": Subject("members", name="be")}
    assert found == {label: TorchSource(RUN, subject, Path("data")) for label, subject in wanted.items()}
    assert {spec.precision for spec in specs} == {"fp32"}


@pytest.mark.parametrize(
    ("backend", "suffixes"),
    [
        ("onnxruntime", ("", " (int8)")),  # fp16 is emulated on x86
        ("openvino", ("", " (int8)")),
        ("openvino-bf16", ("",)),
        ("onnxruntime-cuda", ("", " (fp16)")),  # which has no 8-bit convolution
    ],
)
def test_onnx_backends_run_the_precisions_they_compute_in(backend, suffixes):
    assert labels(manifest(*ONNX), backend) == [f"{form}{suffix}" for suffix in suffixes for form in FORMS]


def test_each_row_has_the_files_of_its_precision():
    specs = {spec.subject.label: spec for spec in row_specs(HERE, manifest(*ONNX), RECIPE, RUN, ["onnxruntime"], None)}
    assert specs["teacher 0"].source == OnnxSource((HERE / "0.onnx",))
    assert specs["ensemble, in turn"].source == OnnxSource((HERE / "0.onnx", HERE / "1.onnx"))
    assert specs["ensemble, merged"].source == OnnxSource((HERE / "2.onnx",))
    assert specs["be (int8)"].source == OnnxSource((HERE / "11.onnx",))  # int8-cpu, the third four
    assert [specs[name].precision == "int8" for name in ("be", "be (int8)")] == [False, True]


def test_rows_are_compared_within_their_precision():
    specs = row_specs(HERE, manifest(*ONNX), RECIPE, RUN, ["onnxruntime", "openvino-bf16", "onnxruntime-cuda"], None)
    found = {(spec.backend, spec.subject.label): spec.precision for spec in specs}
    assert found["onnxruntime", "be"] == "fp32"
    assert found["onnxruntime", "be (int8)"] == "int8"
    assert found["onnxruntime-cuda", "ensemble, merged (fp16)"] == "fp16"
    assert found["openvino-bf16", "be"] == "bf16"
    assert {spec.subject.base.label for spec in specs} == set(FORMS)
    assert {spec.subject.base.label for spec in specs if spec.subject.is_ensemble} == {
        "ensemble, in turn",
        "ensemble, merged",
    }


def test_engines_run_with_and_without_a_cuda_graph():
    files = manifest(*ENGINES)
    specs = row_specs(HERE, files, RECIPE, RUN, ["tensorrt"], None)
    wanted = [
        f"{form}{precision}{graph}"
        for precision in (" (tf32)", " (fp16)", " (int8)")
        for form in ("ensemble, merged", "be")
        for graph in ("", " (CUDA graph)")
    ]
    assert [spec.subject.label for spec in specs] == wanted
    assert {spec.subject.base.label for spec in specs} == {"ensemble, merged", "be"}
    for spec in specs:
        assert isinstance(spec.source, EngineSource)
        assert spec.source.subject.cuda_graph == spec.subject.label.endswith("(CUDA graph)")
        assert spec.source.subject.precision == spec.precision
        assert [file.sha256 for file in spec.source.files] == [
            file.sha256 for file in files.files if HERE / file.path == spec.source.files[0].path
        ]


def test_engine_backend_without_an_engine_has_rows_that_can_say_so():
    specs = row_specs(HERE, manifest(*ENGINES), RECIPE, RUN, ["tensorrt-rtx"], None)
    assert [(spec.subject, spec.source) for spec in specs] == [
        (subject, EngineSource(subject, ()))
        for subject in (Subject("ensemble", ensemble_form="merged"), Subject("student", name="be"))
    ]


def also(other: Manifest, main: Manifest, *backends: str, run: Path = RUN, **options: object) -> list[str]:
    specs = also_specs(Path("export/other"), other, RECIPE, run, backends, None, main=main, **options)
    assert all(spec.artifact == options.get("label", "other") for spec in specs)
    return [spec.key for spec in specs]


def test_another_artifact_adds_its_student_and_only_another_ensemble():
    main, other = manifest(*ONNX), manifest(*ONNX, seed=1)
    same = [other.files[i].model_copy(update={"sha256": main.files[i].sha256}) for i in range(3)]
    twin = other.model_copy(update={"files": (*same, *other.files[3:])})
    assert also(twin, main, "onnxruntime") == ["other: be on onnxruntime", "other: be (int8) on onnxruntime"]
    assert also(other, main, "openvino-bf16") == [
        f"other: {name} on openvino-bf16" for name in ("ensemble, in turn", "ensemble, merged", "be")
    ]
    assert also(twin, main, "openvino-bf16", label="x") == ["x: be on openvino-bf16"]


def test_another_artifacts_torch_rows_need_its_run(tmp_path):
    main, other = manifest(*ONNX), manifest(*ONNX, seed=1)
    assert also(other, main, "torch", run=tmp_path / "gone") == []
    RunFolder(tmp_path / "run").claim(RECIPE)
    assert also(other, main, "torch", run=tmp_path / "run") == [
        f"other: {name} on torch" for name in ("ensemble, in turn", "be (members)", "be")
    ]
    foreign = manifest(*ONNX, seed=1, recipe_sha256="0" * 64)
    with pytest.raises(RequestError, match=r"--also other: .*run is not the run it was made from"):
        also(foreign, main, "torch", run=tmp_path / "run")
    assert also(foreign, main, "onnxruntime", run=tmp_path / "run")  # no row of it needs the run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"preprocessing": {**IMAGES, "image_size": [32, 16]}},
            "takes RGB images of 32x16 .* takes RGB images of 8x8 ",
        ),
        ({"preprocessing": {**IMAGES, "dtype": "uint8"}}, "takes .* as uint8 NCHW .* as float32 NCHW"),
        ({"classes": ["a", "b", "c"]}, "has 3 classes, the artifact that is benched has 2;"),
        ({"classes": ["a", "x"]}, "has 2 classes, the artifact that is benched has 2: 'x' where that has 'b'"),
    ],
)
def test_another_artifact_for_other_images_or_classes_is_refused(changes, message):
    with pytest.raises(RequestError, match=f"--also other: {message}"):
        also(manifest(*ONNX, seed=1, **changes), manifest(*ONNX), "onnxruntime")


def test_keys_are_all_different():
    main = manifest(*ONNX, *ENGINES)
    specs = row_specs(HERE, main, RECIPE, RUN, BACKENDS, None)
    specs += also_specs(HERE, manifest(*ONNX, *ENGINES, seed=1), RECIPE, RUN, BACKENDS, None, main=main)
    assert len({spec.key for spec in specs}) == len(specs) > 60


def test_teachers_of_a_manifest_that_does_not_number_them_are_in_their_order():
    unnumbered = manifest(*ONNX)
    found = [(file.precision, file.member) for file in unnumbered.files if file.role == "teacher"]
    assert found == [(precision, m) for precision in ("fp32", "fp16", "int8-cpu", "int8-trt") for m in (0, 1)]
    assert {file.member for file in unnumbered.files if file.role != "teacher"} == {None}
    files = [file.model_dump() for file in reversed(unnumbered.files)]  # numbered now, and listed the other way round
    (spec,) = [
        spec
        for spec in row_specs(HERE, manifest(files=files), RECIPE, RUN, ["openvino-bf16"], None)
        if spec.subject == Subject("teacher", member=0)
    ]
    assert spec.source == OnnxSource((HERE / "0.onnx",))


def test_file_that_the_export_found_unfit_for_openvino_keeps_the_reason_on_every_backend():
    files = manifest(("student", "onnx", "fp32"), ("student", "onnx", "int8-cpu"))
    unfit = files.files[1].model_copy(update={"notes": {"not_for_openvino": "it loses 2.05 points there"}})
    changed = files.model_copy(update={"files": (files.files[0], unfit)})
    specs = row_specs(HERE, changed, RECIPE, RUN, ["openvino"], None)
    sources = [spec.source for spec in specs if isinstance(spec.source, OnnxSource)]
    assert [source.not_for_openvino for source in sources] == [
        None,
        "1.onnx: it loses 2.05 points there",
    ]
