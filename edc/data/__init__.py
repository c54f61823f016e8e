"""Data sets, and batches that depend on nothing but a seed and a position."""

from edc.data.batches import evaluation_batches, steps_per_epoch, train_batches
from edc.data.data_set import DataSet
from edc.data.images import FileImages, Images, MemoryImages
from edc.data.sources import load_data

__all__ = [
    "DataSet",
    "FileImages",
    "Images",
    "MemoryImages",
    "evaluation_batches",
    "load_data",
    "steps_per_epoch",
    "train_batches",
]
