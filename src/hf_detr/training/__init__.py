"""Training: optimizer groups, evaluation."""

from .evaluation_loop import evaluate_model as evaluate_model
from .optimizer import parameter_groups as parameter_groups
