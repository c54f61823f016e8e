"""Which split a folder or a file belongs to, by its name, in the words of Roboflow, Kaggle and the Hugging Face hub."""

import re
from collections.abc import Iterable
from typing import Literal

from edc.errors import DataError

__all__ = [
    "SPLITS",
    "Split",
    "looks_like_a_split",
    "may_be_a_missing_split",
    "split_at_the_start",
    "split_of_file",
    "split_of_folder",
]

Split = Literal["train", "validation", "test"]
SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF: dict[str, Split] = {word: split for split, words in SPLITS.items() for word in words}
_WORDS = "|".join(sorted(_SPLIT_OF, key=len, reverse=True))
_BESIDE = "set|data|dataset|images|image|imgs|img|split|seg|folder"
"""Words beside the split's own in the name of a folder that say nothing: `training_set`, `seg_test`, `valdata`."""
_FOLDER = re.compile(rf"(?:(?:{_BESIDE})[-_. ]?)*({_WORDS})(?:[-_. ]?(?:{_BESIDE}))*")
_IN_FOLDER = re.compile(rf"(?<![a-z])({_WORDS})(?:{_BESIDE})*(?![a-z])")
_IN_FILE = re.compile(rf"(?<![^-_. ])({_WORDS})(?![^-_. 0-9])")


def split_of_folder(name: str) -> Split | None:
    """Returns the split that a folder's name says, in capitals or not; None: it is no name of a split."""
    match = _FOLDER.fullmatch(name.lower())
    return _SPLIT_OF[match[1]] if match else None


def looks_like_a_split(name: str) -> bool:
    """Returns whether a folder's name has a split's name in it (`train_v2`), whatever else it has."""
    return bool(_splits_in(name))


def may_be_a_missing_split(name: str, found: Iterable[Split]) -> bool:
    """Returns whether a folder's name has the name of a split in it that is not among those `found`."""
    return bool(_splits_in(name) - set(found))


def _splits_in(name: str) -> set[Split]:
    return {_SPLIT_OF[word] for word in _IN_FOLDER.findall(name.lower())}


def split_of_file(path: str) -> Split | None:
    """Returns the split that a word in a file's name says or, if none does, its folder's name.

    Args:
        path: below the data set's root, with forward slashes.

    Raises:
        DataError: the name has words of two splits.
    """
    folder, _, name = path.rpartition("/")
    for words in (_IN_FILE.findall(name.lower()), _IN_FILE.findall(folder.partition("/")[0].lower())):
        if found := _only({_SPLIT_OF[word] for word in words}, path):
            return found
    return split_of_folder(_stem(name)) or split_of_folder(folder.partition("/")[0])


def split_at_the_start(path: str) -> tuple[Split, str] | None:
    """Returns the split that a file's name begins with or, if none does, its folder's name; and those very letters.

    The letters include what follows the word, which tells `train-00000-of-00005.parquet` from `train.parquet`.
    """
    folder, _, name = path.rpartition("/")
    if match := _IN_FILE.match(name.lower()):
        return _SPLIT_OF[match[1]], name[: match.end() + 1].rstrip("0123456789")
    if split := split_of_folder(_stem(name)):
        return split, _stem(name)
    split = split_of_folder(folder.partition("/")[0])
    return (split, folder) if split else None


def _stem(name: str) -> str:
    """Returns a file's name up to its number or suffix: `trainset` of `trainset-00001.tar`."""
    return re.split(r"[-_. ]*\d|\.", name, maxsplit=1)[0]


def _only(found: Iterable[Split], path: str) -> Split | None:
    splits = sorted(found)
    if len(splits) > 1:
        raise DataError(
            f"{path}: its name says {' and '.join(splits)}, and edc cannot tell which split it belongs to; rename it"
        )
    return splits[0] if splits else None
