"""Training: one fit from comparisons to a model, in a run folder that survives whatever happens to it."""

from prefkit.training.curriculum import CurriculumOptions, CurriculumResult, fit_curriculum, make_stages
from prefkit.training.data import TrainingData, prepare
from prefkit.training.fit import FitResult, fit, go_back, interruptible, open_run, write_model
from prefkit.training.meta import MetaLearning, MetaOptions
from prefkit.training.options import TrainingOptions
from prefkit.training.reference import reference_scores
from prefkit.training.run import Run
from prefkit.training.targets import PairingOptions
from prefkit.training.trainer import PreferenceTrainer

__all__ = [
    "CurriculumOptions",
    "CurriculumResult",
    "FitResult",
    "MetaLearning",
    "MetaOptions",
    "PairingOptions",
    "PreferenceTrainer",
    "Run",
    "TrainingData",
    "TrainingOptions",
    "fit",
    "fit_curriculum",
    "go_back",
    "interruptible",
    "make_stages",
    "open_run",
    "prepare",
    "reference_scores",
    "write_model",
]
