"""What the documentation says to type exists: commands, options, make targets, recipes, files, anchors."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from command_line import commands
from conftest import TESTS

from edc.recipe import Recipe, StudentSection
from edc.runs.cost import units_per_step

ROOT = TESTS.parent
README = ROOT / "README.md"
FOLDERS = (".", "docs", "recipes", "export", "export/web", "results", "benchmarks")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"(?<![\w/.<>-])(?:edc|recipes|tests|docs|benchmarks|results)/[\w./*-]*")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SHELL_WORDS = (";", "&&", "|", "||", ">", "2>", "<", "&")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fenced_lines(text: str) -> list[str]:
    """Returns the lines of all code blocks, continued ones joined."""
    return [line.strip() for block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]


def typed(text: str, program: str) -> list[list[str]]:
    """Returns the arguments of every call of `program`: on lines of code blocks, and as `inline code`."""
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    calls = []
    for line in [*fenced_lines(text), *inline]:
        words = shlex.split(line.removeprefix("$ ").strip(), comments=True) if program in line else []
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # OMP_NUM_THREADS=2 edc ...
            words = words[1:]
        if words and Path(words[0]).name == program:
            end = next((i for i, word in enumerate(words) if word in SHELL_WORDS), len(words))
            calls.append(words[1:end])
    return calls


def problem_with(arguments: list[str], *, is_name: bool = False) -> str | None:
    """Returns why `edc ARGUMENTS` cannot be typed, or None; a command that is only named needs no arguments."""
    if not arguments or arguments[0] in ("--help", "-h", "--version"):
        return None
    command = commands().get(arguments[0])
    if command is None:
        return f"no command {arguments[0]}"
    rest = [word.strip("[]") for word in arguments[1:] if word not in ("--help", "-h", "...")]
    needs_all = len(rest) == len(arguments) - 1 and not is_name
    try:
        command.make_context(arguments[0], rest, resilient_parsing=not needs_all)
    except Exception as error:  # noqa: BLE001 - click is vendored: its errors have no public name
        return str(error) or type(error).__name__
    return None


@pytest.mark.parametrize("arguments", [["distil"], ["distill", "a", "--dryrun"], ["bench", "--threads"], ["teach"]])
def test_mistyped_command_would_be_found(arguments):
    assert problem_with(arguments)


def test_calls_are_found_wherever_they_stand():
    text = "`edc show A` and\n```sh\n$ OMP_NUM_THREADS=1 .venv/bin/edc bench \\\n  --quick  # fast\nmake demo\n```\n"
    assert typed(text, "edc") == [["bench", "--quick"], ["show", "A"]]


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "Makefile"], ids=name_of)
def test_every_edc_command_can_be_typed(path):
    text = path.read_text()
    if path.name == "Makefile":
        text = "```\n" + re.sub(r"\$\(\w+\)/", "", text).replace("\t", "") + "```\n"
    calls = typed(text, "edc")
    assert path != README or len(calls) >= 5
    assert path.name != "Makefile" or len(calls) >= 3
    problems = [problem_with(call, is_name=len(call) == 1 and f"`edc {call[0]}`" in text) for call in calls]
    assert list(filter(None, problems)) == []


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_launch_line_of_a_recipe_can_be_typed(path):
    header = path.read_text().split("\nname:", maxsplit=1)[0]
    lines = [line[line.index("edc ") :].partition(" (")[0] for line in header.splitlines() if " edc " in line]
    calls = [shlex.split(line)[1:] for line in lines]
    assert calls
    assert [problem for call in calls if (problem := problem_with(call))] == []
    assert ["distill", f"recipes/{path.name}"] in [call[:2] for call in calls]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_make_target_exists(path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = [call[0] for call in typed(path.read_text(), "make")]
    assert path != README or len(called) >= 2
    assert set(called) <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(path):
    text = path.read_text()
    links = [link for link in LINK.findall(FENCE.sub("", text)) if not re.match(r"[a-z]+:", link)]
    assert path != README or len(links) >= 5
    for link in links:
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text()), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
            assert anchor in slugs, link


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_path_that_is_named_exists(path):
    text = re.sub(r"\w+://\S+", "", path.read_text())
    paths = [found.rstrip(".") for found in PATH.findall(text)]
    assert path != README or len(paths) >= 10
    assert [found for found in paths if not any(ROOT.glob(found))] == []


def test_table_of_recipes_is_complete():
    listed = re.findall(r"^\| `([\w.-]+\.yaml)` \|", (ROOT / "recipes/README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [path.name for path in RECIPES]
    assert listed


def test_costs_in_the_readme_are_those_of_the_dry_run():
    section = README.read_text().split("at M = 4:", maxsplit=1)[1].replace("\n", " ")
    for name, student in (
        ("KD", StudentSection(method="kd")),
        ("LatentBE", StudentSection(method="latent_be")),
        ("TDiv-SDiv", StudentSection(method="latent_be", perturbation="tdiv_sdiv")),
    ):
        assert int(re.search(rf"{name} (\d+)", section)[1]) == units_per_step(student, 4)


def test_table_of_commands_is_complete():
    named = {call[0] for call in typed(README.read_text(), "edc") if call}
    assert set(commands()) <= named


def prose_sentences(text: str) -> list[str]:
    """Returns the sentences outside code blocks, tables, headings and pictures; inline code counts as one word."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`\n]+`", "code", FENCE.sub("\n", text)))
    lines = ["" if line.startswith(("|", "#")) else re.sub(r"^(\d+\.|-|>) ", "\n", line) for line in text.splitlines()]
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", "\n".join(lines))]
    ends = re.compile(r"(?<=[.!?])[*)]* (?=[A-Z0-9*(]|code|edc)")
    return [sentence for paragraph in paragraphs for sentence in ends.split(paragraph) if sentence]


def test_sentences_are_counted_without_code_and_tables():
    text = "# Title\n\nOne two. `a b` is\nthree? edc four\n\n| a | b |\n```sh\nmake demo\n```\n1. x\n2. [y z](w)\n"
    assert prose_sentences(text) == ["One two.", "code is three?", "edc four", "x", "y z"]


def test_no_sentence_of_the_readme_is_over_30_words():
    found = prose_sentences(README.read_text())
    assert len(found) > 50
    assert [sentence for sentence in found if len(sentence.split()) > 30] == []


def test_python_of_the_readme_stands_in_the_example():
    """examples/own_loop.py is run by tests/test_front_door.py; the README shows lines of it, in their order."""
    (block,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    shown = [line for line in block.splitlines() if line]
    example = iter((ROOT / "examples/own_loop.py").read_text().splitlines())
    assert len(shown) >= 10
    assert [line for line in shown if line not in example] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_recipes_that_are_shown_are_recipes_and_python_can_be_parsed(path):
    """Parts of a recipe stand in for the sections of a whole one."""
    whole = {"name": "shown", "data": {"kind": "image_folder", "root": "photos", "image_size": 224}}
    whole |= {"network": "timm/resnet18", "students": {"kd_long": {"method": "kd"}}, "training": {"epochs": 40}}
    for language, block in re.findall(r"^```(yaml|python)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        if language == "python":
            compile(block, path.name, "exec")
            continue
        shown = yaml.safe_load(block)
        if set(shown) <= set(Recipe.model_fields):
            assert Recipe.model_validate(shown if "name" in shown else whole | shown)
