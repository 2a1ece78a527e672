"""How good a model is: held-out loss, written answers, and a bridge to other evaluations."""

from danlu.evaluation.config import EvalData, EvalRecipe, EvalRun
from danlu.evaluation.evaluate import evaluate
from danlu.evaluation.extractors import Extractor
from danlu.evaluation.result import Evaluation, Result

__all__ = ["EvalData", "EvalRecipe", "EvalRun", "Evaluation", "Extractor", "Result", "evaluate"]
