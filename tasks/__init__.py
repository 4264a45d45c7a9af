"""Fine-tuning tasks, and pretraining's. Importing this package registers all of them."""

from tasks import language_model, seq2seq, superglue
from tasks.registry import TASKS, build_task, register_task, task_name
from tasks.superglue.dataset import majority_class_accuracy

__all__ = [
    "TASKS",
    "build_task",
    "language_model",
    "majority_class_accuracy",
    "register_task",
    "seq2seq",
    "superglue",
    "task_name",
]
