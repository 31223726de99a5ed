"""What scores are worth: metrics, and the comparison of two models."""

from cprfl.evaluation.metrics import Evaluation, average_precision, evaluate, f1_scores

__all__ = ["Evaluation", "average_precision", "evaluate", "f1_scores"]
