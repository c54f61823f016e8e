"""Teachers that answer in another order of classes, from distill to the bench: the figures of those in its own."""

from pathlib import Path

import onnxruntime
import pytest
import yaml
from command_line import edc
from conftest import TINY_RECIPE, Workshop
from safetensors.torch import load_file, save_file

from edc.data import load_data
from edc.recipe import Recipe

ORDER = ("class2", "class0", "class3", "class1")


@pytest.mark.slow
def test_permuted_teachers_have_the_same_figures_in_summary_export_and_bench(workshop: Workshop, tmp_path: Path):
    columns = [int(name.removeprefix("class")) for name in ORDER]
    checkpoints = []
    for m, path in enumerate(sorted((workshop.folder / "runs/teachers").glob("*/weights.safetensors"))):
        state = load_file(path)
        classifier = [key for key in state if key.startswith("network.classifier.")]
        assert classifier
        save_file(state | {key: state[key][columns].contiguous() for key in classifier}, tmp_path / f"{m}.safetensors")
        checkpoints.append({"file": f"{m}.safetensors", "classes": list(ORDER), "allow_weak": True})
    document = yaml.safe_load(TINY_RECIPE) | {"name": "permuted", "teachers": {"checkpoints": checkpoints}}
    (tmp_path / "permuted.yaml").write_text(yaml.safe_dump(document))

    done = edc("distill", "permuted.yaml", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    of_workshop, rows = (
        [row for row in summary["rows"] if row["subject"].split()[0] in ("teacher", "ensemble")]
        for summary in (workshop.distilled.document, done.document)
    )
    assert len(rows) == len(of_workshop) == 3
    for row, expected in zip(rows, of_workshop, strict=True):
        assert row["raw"]["acc"] == expected["raw"]["acc"]
        assert row["raw"]["nll"] == pytest.approx(expected["raw"]["nll"], rel=1e-5)

    exported = edc("export", "runs/permuted", "--output", "artifact", "--max-batch", "8", cwd=tmp_path)
    assert exported.exit_code == 0, exported.stderr
    test = load_data(Recipe.model_validate(document).data).test
    images, labels = test.images.float().numpy() / 255, test.labels.numpy()
    files = sorted(path for path in (tmp_path / "artifact").rglob("*.onnx") if "student" not in path.name)
    assert len(files) == 3
    by_name = dict(zip(("teacher0", "teacher1", "ensemble"), of_workshop, strict=True))
    for path in files:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answers = session.run(None, {session.get_inputs()[0].name: images})[0].argmax(1)
        expected = next(row for name, row in by_name.items() if name in path.name.replace("_", ""))
        assert (answers == labels).mean() == pytest.approx(expected["raw"]["acc"])

    quick = ["--quick", "--backends", "torch,onnxruntime", "--batch", "1", "--no-robustness", "--json"]
    benched = edc("bench", "artifact", *quick, cwd=tmp_path)
    assert benched.exit_code == 0, benched.stderr
    accuracy = of_workshop[-1]["raw"]["acc"]
    found = [row for row in benched.document["rows"] if row["subject"].startswith("ensemble")]
    assert found
    assert [row["quality"]["raw"]["acc"] for row in found] == [pytest.approx(accuracy)] * len(found)
