"""Documents of strangers: in bounds, refused in one short message, and no value that YAML only seems to promise."""

import os
import time
from pathlib import Path

import pytest

from edc.benchmark.regression.saved_bench import load_saved
from edc.deploy.artifact.manifest import load_manifest
from edc.errors import ArtifactError, EdcError, RecipeError, RequestError, cut, shown
from edc.recipe.loading import load_recipe
from edc.system.documents import json_from_text, read_text, yaml_from_text

GOOD = """
name: r
data: {kind: synthetic}
network: wrn10x1
students:
  kd: {method: kd}
"""
BILLION = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [*a{k - 1}]\n" for k in range(1, 900))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: 2001-99-99", "seed: found '2001-99-99'; input should be a valid integer"),
        ("seed: 0x_", "found '0x_', which is no int; quote what is text"),
        ("seed: " + "9" * 5000, "which is no int"),
        ("seed: 0x" + "f" * 5000, "a whole number of more than 64 bits"),
        ("seed: 1:" + ":".join(["59"] * 5000), "a whole number of more than 64 bits"),
        ("seed: !!bool x", "found 'x', which is no bool"),
        ("seed: !!timestamp x", "found 'x', which is no timestamp"),
        ('name2: "\\0"', "which is no text"),
        ('name2: "\\ud800"', "which is no text"),
        ("x: " + "[" * 900 + "]" * 900, "nested deeper than 50 levels"),
        ("x:\n" + "".join(" " * k + "- \n" for k in range(1, 900)), "nested deeper than 50 levels"),
        (CHAIN, "aliases nested deeper than 50 levels"),
        (BILLION, "more than 100000 values, aliases written out"),
        ("x: &a [*a]", r"\*a stands within itself"),
        ("x: *" + "b" * 100_000, "undefined alias"),
        ("x: " + "a" * 600_000, "larger than the 512 KiB"),
        ("seed: [" + "a, " * 2000 + "]", "seed: found .'a', 'a', 'a', 'a', 'a', 'a', ....; input should be"),
        ("".join(f"k{k}: 1\n" for k in range(1000)), "1000 mistakes.*and 980 more"),
        (
            "teachers: {ensemble_size: 100000}",
            "ensemble_size: found 100000; input should be less than or equal to 1000",
        ),
        ("training: {epochs: 9000000000000000000}", "epochs: .*less than or equal to 1000000000"),
    ],
    ids=lambda value: value[:24],
)
def test_recipe_out_of_bounds_is_one_short_message_at_once(tmp_path: Path, line: str, message: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD + line + "\n")
    start = time.perf_counter()
    with pytest.raises(RecipeError, match=f"(?s){message}") as caught:
        load_recipe(path)
    assert time.perf_counter() - start < 5
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize(
    "network", ["wrn10x0", "wrn10x101", "wrn100000000000000000x1", "cifar_resnet8x0", "cifar_resnet2006", "w" * 9999]
)
def test_network_without_width_or_without_end_is_refused(tmp_path: Path, network: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("wrn10x1", network))
    with pytest.raises(RecipeError, match=r"network: .*expected") as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 500


def test_synthetic_images_of_a_recipe_have_a_limit(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("synthetic", "synthetic, num_images: 1000000, image_size: 64"))
    with pytest.raises(RecipeError, match=r"num_images: found 1000000 images of 64 px .* more than 4 GiB"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=0x_", "not valid YAML: found '0x_'"),
        ("seed=" + "[" * 900, "nested deeper than 50"),
        (".".join(["a"] * 5000) + "=1", "expected field.path=value"),
        ("data.extra.².limit=1", "the list has 0 entries"),
        ("name." + "a" * 9999 + "=1", "is 'r', not a section"),
        ("seed='" + "a" * 100_000 + "'", "found 'aaa"),
    ],
    ids=lambda value: value[:24],
)
def test_override_out_of_bounds_is_one_short_message(tmp_path: Path, override: str, message: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("synthetic", "synthetic, extra: []"))
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path, overrides=[override])
    assert len(str(caught.value)) < 1500


def test_date_is_text_and_a_merged_mapping_is_filled_in():
    assert yaml_from_text("a: 2026-11-25") == {"a": "2026-11-25"}
    text = "one: &one {method: kd, alpha: 0.5}\ntwo: {<<: *one, alpha: 1.0}"
    assert yaml_from_text(text)["two"] == {"method": "kd", "alpha": 1.0}


def test_what_waits_or_never_ends_is_no_document(tmp_path: Path):
    os.mkfifo(tmp_path / "recipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for path in (tmp_path / "recipe.yaml", tmp_path / "zero.yaml", Path("/dev/zero")):
        with pytest.raises(RecipeError, match=r"cannot be read as a recipe .*not a regular file"):
            load_recipe(path)
    for name in ("manifest.json", "bench.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ArtifactError, match=r"manifest.json: cannot be read: not a regular file"):
        load_manifest(tmp_path)
    with pytest.raises(RequestError, match=r"bench.json: cannot be read .not a regular file"):
        load_saved(tmp_path)


def test_file_over_its_limit_is_not_read_to_its_end(tmp_path: Path):
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than the 16384 KiB"):
        read_text(tmp_path / "large.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 60 + "]" * 60, "nested deeper than 50 levels"),
        ("[" * 90_000 + "]" * 90_000, "nested deeper than 50 levels"),
        ("9" * 5000, "a number of 5000 digits"),
        ('["\\ud800"]', "which is no text"),
        ('{"\\u0000": 1}', "which is no text"),
        ("[1,", "Expecting value"),
    ],
    ids=lambda value: value[:24],
)
def test_json_out_of_bounds_is_a_value_error(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        json_from_text(text)


def test_messages_are_cut_in_the_middle():
    assert cut("short", 10) == "short"
    assert len(cut("a" * 10_000 + "the end", 200)) == 200
    assert cut("a" * 10_000 + "the end", 200).endswith("the end")
    assert len(str(EdcError("a" * 10**7))) == 8000
    assert len(shown(["a" * 10**6] * 1000)) < 1000
    assert len(shown(int("9" * 4000))) < 200
