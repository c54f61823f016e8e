"""Recipes from YAML: what ships loads, and one message lists every mistake by its field."""

import subprocess
import sys
from pathlib import Path

import pytest

from edc.errors import RecipeError
from edc.recipe.loading import load_recipe

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
GOOD = """
name: r
data: {kind: synthetic}
network: wrn10x1
students:
  kd: {method: kd}
"""


@pytest.fixture
def written(tmp_path: Path):
    """Returns a function that writes a recipe and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def mistakes(path: Path, *overrides: str) -> list[str]:
    """Returns the lines of the message that refuses `path`."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides=overrides)
    assert caught.value.exit_code == 2
    return [line.strip() for line in str(caught.value).splitlines()]


def test_recipes_ship():
    names = {path.stem for path in SHIPPED}
    assert {"digits", "cifar10_small", "cifar100_wrn28x4", "imagenet_r18"} <= names


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_loads_and_says_how_to_launch_it(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    header = path.read_text().split("name:", maxsplit=1)[0]
    assert all(line.startswith("#") for line in header.strip().splitlines())
    for word in ("launch", "needs", "reaches", f"edc distill recipes/{path.name}"):
        assert word in header


def test_the_papers_setting_is_exact():
    recipe = load_recipe(ROOT / "recipes/cifar100_wrn28x4.yaml")
    training, student = recipe.training, recipe.students["latent_be_tdiv_sdiv"]
    assert (recipe.data.kind, recipe.data.validation, recipe.network.name) == ("cifar100", 5000, "wrn28x4")
    assert (recipe.data.augmentation, recipe.data.crop_padding) == ("crop_flip", 4)
    assert (training.epochs, training.batch_size, training.learning_rate, training.warmup_epochs) == (200, 128, 0.1, 5)
    assert (training.optimizer, training.momentum, training.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (recipe.teachers.size, student.temperature, student.alpha) == (4, 4.0, 1.0)
    assert (student.perturbation, student.perturbation_grey_levels) == ("tdiv_sdiv", 1.0)
    assert (student.fold, student.choose, recipe.best_by) == ("mean_factors", "trained", "accuracy")


def test_numbers_that_yaml_reads_as_text_are_numbers(written):
    recipe = load_recipe(written(GOOD + "training: {weight_decay: 5e-5, learning_rate: 1e-1}"))
    assert recipe.training.weight_decay == 5e-5
    assert recipe.training.learning_rate == 0.1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trainin: {}", "trainin: unknown key; did you mean 'training'?"),
        ("training: {epoch: 3}", "training.epoch: unknown key; did you mean 'epochs'?"),
        ("teachers: {network: {name: wrn10x1, men: [1]}}", "teachers.network.men: unknown key; did you mean 'mean'?"),
        (
            "teachers: {checkpoints: [a.pt, {file: b, netwrk: c}]}",
            "teachers.checkpoints.1.netwrk: unknown key; did you mean 'network'?",
        ),
        ("training: {epochs: 0}", "training.epochs: found 0; input should be greater than 0"),
        ("training: {precision: fp8}", "training.precision: found 'fp8'; input should be 'fp32', 'tf32' or 'bf16'"),
        ("seed: one", "seed: found 'one'; input should be a valid integer"),
        ("training:", "training: found None; input should be a valid dictionary"),
    ],
)
def test_mistake_names_the_field_and_the_nearest_key(written, line, message):
    lines = mistakes(written(GOOD + line))
    assert lines[0].endswith("recipe.yaml: 1 mistake")
    assert lines[1].startswith(message)


def test_mistake_inside_a_student_names_the_student(written):
    lines = mistakes(written(GOOD.replace("{method: kd}", "{method: kd, tempratur: 3}")))
    assert lines[1:] == ["students.kd.tempratur: unknown key; did you mean 'temperature'?"]


def test_unknown_key_without_a_near_one_lists_the_known_ones(written):
    lines = mistakes(written(GOOD + "teachers: {zzzz: 1}"))
    known = "ensemble_size, network, epochs, training, class_weights, seed, checkpoints"
    assert lines[1] == f"teachers.zzzz: unknown key; known: {known}"


def test_all_mistakes_come_at_once(written):
    lines = mistakes(written("name: r\ndata: {kind: digit, sede: 1}\nnetwork: wrn11x1\nstudents: {}\nextra: 1"))
    assert lines[0].endswith(": 5 mistakes")
    fields = {line.split(":", maxsplit=1)[0] for line in lines[1:]}
    assert fields == {"data.kind", "data.sede", "network", "students", "extra"}


def test_missing_fields_are_named(written):
    assert mistakes(written("name: r"))[1:] == [
        "data: missing; it is required",
        "network: missing; it is required",
        "students: missing; it is required",
    ]


def test_rules_between_sections_are_named_by_field(written):
    text = GOOD.replace("{method: kd}", "{method: latent_be, perturbation: tdiv_sdiv}")
    lines = mistakes(written(text + "teachers: {ensemble_size: 1}"))
    assert lines[1].startswith("students.kd.perturbation: 'tdiv_sdiv' needs a pair of teachers")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b", "duplicate key 'name'"),
        ("name: a\ndata: {kind: digits, kind: cifar10}", "duplicate key 'kind'"),
        ("name: a\nstudents:\n  kd: {}\n  kd: {}", "duplicate key 'kd'"),
        ("name: [", "not valid YAML"),
        ("? [a, b]\n: 1", "as a key, expected a name"),
        ("? {a: b}\n: 1", "as a key, expected a name"),
        ("- a\n- b", "found list, expected a mapping"),
        ("", "found NoneType, expected a mapping"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_file_that_is_no_recipe(written, text, message):
    assert message in " ".join(mistakes(written(text)))


def test_file_that_is_no_text(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as a recipe" in mistakes(path)[0]
    assert "cannot be read as a recipe" in mistakes(tmp_path)[0]


def test_missing_file_names_the_nearest_recipe(written, tmp_path):
    written(GOOD)
    assert mistakes(tmp_path / "recip.yaml") == [
        f"{tmp_path}/recip.yaml: no such recipe; did you mean {tmp_path}/recipe.yaml?"
    ]
    assert mistakes(tmp_path / "zz") == [f"{tmp_path}/zz: no such recipe; {tmp_path} has: recipe.yaml"]
    assert mistakes(tmp_path / "no/zz") == [f"{tmp_path}/no/zz: no such recipe (and no folder {tmp_path}/no)"]


def test_overrides_are_read_as_yaml(written):
    recipe = load_recipe(
        written(GOOD),
        overrides=[
            "training.epochs=30",
            "training.learning_rate=5e-2",
            "data.validation=null",
            "network.mean=[0.5, 0.4, 0.3]",
            "network.std=[1, 1, 1]",
            "students.be.method=latent_be",
            "students.be.fold=mean_factors",
            "name=a.b",
            "teachers={ensemble_size: 3}",
        ],
    )
    assert (recipe.training.epochs, recipe.training.learning_rate) == (30, 0.05)
    assert (recipe.network.name, recipe.network.mean) == ("wrn10x1", (0.5, 0.4, 0.3))
    assert recipe.students["be"].fold == "mean_factors"
    assert (recipe.name, recipe.teachers.size, recipe.deploy) == ("a.b", 3, "be")


def test_the_last_override_of_a_field_wins(written):
    assert load_recipe(written(GOOD), overrides=["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected field.path=value"),
        ("=3", "--set =3: expected field.path=value"),
        ("seed=[", "--set seed=[: the value is not valid YAML"),
        ("name.x=1", "--set name.x=1: name is 'r', not a section"),
        ("training.epoch=3", "training.epoch: unknown key; did you mean 'epochs'?"),
        ("data.kind.x=1", "--set data.kind.x=1: data.kind is 'synthetic', not a section"),
    ],
)
def test_override_that_makes_no_sense(written, override, message):
    assert message in " ".join(mistakes(written(GOOD), override))


@pytest.mark.parametrize("override", ["data={kind: digits, kind: cifar10}", "data={[a]: 1}"])
def test_override_is_read_as_strictly_as_the_file(written, override):
    assert "--set data" in mistakes(written(GOOD), override)[0]


def test_data_root_wins_over_the_file(written, tmp_path):
    recipe = load_recipe(written(GOOD.replace("synthetic}", "synthetic, root: /a}")), data_root=tmp_path)
    assert recipe.data.root == tmp_path
    assert load_recipe(written(GOOD), data_root=tmp_path).digest() == load_recipe(written(GOOD)).digest()


def test_recipe_is_refused_before_anything_heavy_loads():
    code = (
        "import sys; import edc.recipe.loading; "
        "print([name for name in ('torch', 'numpy', 'timm', 'sklearn', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.strip() == "[]"
