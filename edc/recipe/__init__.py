"""Recipes: what a run is. Importable without torch."""

from edc.recipe.data_section import DataSection, ExtraSection, Section
from edc.recipe.recipe import Recipe
from edc.recipe.sections import (
    NETWORK_NAME,
    CheckpointSection,
    NetworkSection,
    StudentSection,
    TeachersSection,
    TrainingSection,
)

__all__ = [
    "NETWORK_NAME",
    "CheckpointSection",
    "DataSection",
    "ExtraSection",
    "NetworkSection",
    "Recipe",
    "Section",
    "StudentSection",
    "TeachersSection",
    "TrainingSection",
]
