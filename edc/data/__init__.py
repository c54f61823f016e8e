"""Data sets, and batches that depend on nothing but a seed and a position."""

from edc.data.batches import evaluation_batches, train_batches
from edc.data.data_set import DataSet, near
from edc.data.extra import ExtraImages, steps_per_epoch
from edc.data.images import FileImages, Images, MemoryImages
from edc.data.sources import load_data, load_training_data

__all__ = [
    "DataSet",
    "ExtraImages",
    "FileImages",
    "Images",
    "MemoryImages",
    "evaluation_batches",
    "load_data",
    "load_training_data",
    "near",
    "steps_per_epoch",
    "train_batches",
]
