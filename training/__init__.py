"""Training: token shards, optimizers, the loop, and the recipes that configure it."""

from tokgolf.training.config import RunConfig, read_recipe, recipe_names, run_config
from tokgolf.training.loop import StepReport, TrainResult, train

__all__ = [
    "RunConfig",
    "StepReport",
    "TrainResult",
    "read_recipe",
    "recipe_names",
    "run_config",
    "train",
]
