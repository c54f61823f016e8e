"""The order of a teacher's answers, and the columns that bring them into the order of the data's classes.

torchvision and edc sort class folders by code point (class10 before class2), timm naturally and without case (class2
before class10). A network does not say in which order it was trained.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from edc.errors import RecipeError, first_line
from edc.recipe.teachers_section import CLASS_ORDERS
from edc.system.documents import json_from_text, read_text

__all__ = ["columns_of", "known_orders", "order_of"]


def order_of(
    classes: tuple[str, ...] | str | None, class_names: Sequence[str], *, field: str
) -> tuple[int, ...] | None:
    """Returns for each class of the data the column of the teacher's answer; None if the two orders are the same.

    Args:
        classes: of the recipe: names in the teacher's order, a file of them, or the rule by which they were sorted.

    Raises:
        RecipeError: names that are not the data's, each once, or a rule that two of them are equal by.
    """
    if classes is None:
        return None
    field = f"{field}.classes"
    if isinstance(classes, str):
        by_rule = classes in CLASS_ORDERS
        classes = tuple(_sorted(classes, class_names, field) if by_rule else _names_in(Path(classes), field))
    return columns_of(classes, class_names, field=field)


def columns_of(names: Sequence[str], class_names: Sequence[str], *, field: str) -> tuple[int, ...] | None:
    """Returns the place in `names` of each of `class_names`; None if they are in the same order.

    Accents may be written as macOS does in one of them, and as Linux does in the other.
    """
    names, class_names = _composed(names), _composed(class_names)
    missing = [name for name in class_names if name not in set(names)]
    unknown = [name for name in names if name not in set(class_names)]
    if missing or unknown or len(names) != len(class_names):
        found = [f"without {', '.join(missing[:5])}"] if missing else []
        found += [f"with {', '.join(unknown[:5])}, which the data has not"] if unknown else []
        found += ["with names that come twice"] if not found else []
        raise RecipeError(
            f"{field}: found {len(names)} classes {' and '.join(found)}; expected the {len(class_names)} classes of "
            "the data, each once, in the order of the teacher's answers"
        )
    place = {name: column for column, name in enumerate(names)}
    order = tuple(place[name] for name in class_names)
    return None if order == tuple(range(len(order))) else order


def _composed(names: Sequence[str]) -> Sequence[str]:
    composed = [unicodedata.normalize("NFC", name) for name in names]
    return composed if len(set(composed)) == len(set(names)) else names


def known_orders(class_names: Sequence[str]) -> dict[str, tuple[int, ...] | None]:
    """Returns the columns for every rule by which libraries sort class folders, by the word of the recipe for it."""
    orders = {}
    for rule in CLASS_ORDERS:
        keys = [_key(rule)(name) for name in class_names]
        if len({str(key) for key in keys}) == len(keys):
            orders[rule] = columns_of(_sorted(rule, class_names, rule), class_names, field=rule)
    return orders


def _sorted(rule: str, class_names: Sequence[str], field: str) -> list[str]:
    by_key: dict[str, str] = {}
    for name in class_names:
        other = by_key.setdefault(str(_key(rule)(name)), name)
        if other != name:
            raise RecipeError(
                f"{field}: found {rule!r}, in which {other!r} and {name!r} have one place; expected the list of names"
            )
    return sorted(class_names, key=_key(rule))


def _key(rule: str):  # type: ignore[no-untyped-def]  # str to what sorts: text, or timm's numbers and texts
    if rule == "lexicographic":
        return str
    from timm.utils.misc import natural_key

    return natural_key


def _names_in(path: Path, field: str) -> list[str]:
    """Returns the names in a file: one a line, or JSON: a list, names by index (id2label) or the other way round."""
    try:
        text = read_text(path).removeprefix("\ufeff")
        document = json_from_text(text) if path.suffix == ".json" else text.splitlines()
        if isinstance(document, dict) and all(isinstance(value, int) for value in document.values()):
            document = sorted(document, key=document.__getitem__)
        elif isinstance(document, dict):
            document = [document[index] for index in sorted(document, key=int)]
    except OSError as error:
        raise RecipeError(
            f"{field}: {path.absolute()}: cannot be read ({error.strerror}); expected names of classes, or "
            f"{', '.join(CLASS_ORDERS)}"
        ) from None
    except ValueError as error:
        raise RecipeError(f"{field}: {path}: not readable as names of classes ({first_line(error)})") from None
    if not isinstance(document, list):
        found = type(document).__name__
        raise RecipeError(f"{field}: {path}: holds {found}, expected a list of names, or names by index")
    return [name for name in (str(each).strip() for each in document) if name]
