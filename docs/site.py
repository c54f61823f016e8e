"""Gathers what the site is built from: every document at its place in the repository, so that links between them hold.

    python docs/site.py && mkdocs build --strict

Leaves build/site/pages: the documents, the files that they link to, and docs/fields.md, the reference of recipes, made
of recipes/recipe.schema.json.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build/site/pages"
FOLDERS = (".", "docs", "recipes", "export", "export/web", "results", "benchmarks")
LINK = re.compile(r"\]\(([^)\s#]+)")


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    documents = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]
    linked = {
        (document.parent / link).resolve()
        for document in documents
        for link in LINK.findall(document.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", link)
    }
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    known = {ROOT / name for name in tracked.split("\0")}
    for path in {*documents, *linked} & known:
        target = PAGES / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    schema = json.loads((ROOT / "recipes/recipe.schema.json").read_text(encoding="utf-8"))
    (PAGES / "docs/fields.md").write_text(fields_page(schema), encoding="utf-8")


def fields_page(schema: dict[str, Any]) -> str:
    """Returns the reference of a recipe's fields, one heading a section, as Markdown."""
    source = "Made from the JSON Schema of recipes, which is made from the code. An unknown key is an error."
    parts = [f"# Fields of a recipe\n\n{source}\n", section_of("The recipe", schema)]
    for name, section in schema["$defs"].items():
        found = next((one for one in section.get("anyOf", [section]) if "properties" in one), None)
        if found is not None:
            parts.append(
                section_of(name.removesuffix("Section"), found | {"description": section.get("description", "")})
            )
    return "\n".join(parts)


def section_of(title: str, section: dict[str, Any]) -> str:
    lines = [
        f"\n## {title}\n",
        one_line(section.get("description", "")),
        "\n| field | default | values | |",
        "|---|---|---|---|",
    ]
    required = section.get("required", [])
    for name, field in section["properties"].items():
        value = field.get("default")
        default = "required" if name in required else "its own" if isinstance(value, dict) else f"`{json.dumps(value)}`"
        lines.append(f"| `{name}` | {default} | {values_of(field)} | {one_line(field.get('description', ''))} |")
    return "\n".join(lines) + "\n"


def values_of(field: dict[str, Any]) -> str:
    """Returns what a field may be, in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2].removesuffix("Section")
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field or "oneOf" in field:
        return ", ".join(dict.fromkeys(values_of(one) for one in field.get("anyOf", field.get("oneOf"))))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {values_of(field.get('items', {}))}" if field.get("items") else "list"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        return f"mapping to {values_of(inner)}" if isinstance(inner, dict) else "mapping"
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = " ".join(f"{sign} {field[key]:g}" for key, sign in words.items() if key in field and field[key] < 1e9)
    return f"{field.get('type', 'any')} {bounds}".strip()


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
