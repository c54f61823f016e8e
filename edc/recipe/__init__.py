"""Recipes: what a run is. Importable without torch."""

from edc.recipe.data_section import DataSection, ExtraSection, Section
from edc.recipe.network_section import NETWORK_NAME, NetworkSection
from edc.recipe.recipe import BestBy, Recipe
from edc.recipe.sections import StudentSection
from edc.recipe.teachers_section import CheckpointSection, TeachersSection
from edc.recipe.training_section import OPERATION, TrainingOverrides, TrainingSection

__all__ = [
    "NETWORK_NAME",
    "OPERATION",
    "BestBy",
    "CheckpointSection",
    "DataSection",
    "ExtraSection",
    "NetworkSection",
    "Recipe",
    "Section",
    "StudentSection",
    "TeachersSection",
    "TrainingOverrides",
    "TrainingSection",
]
