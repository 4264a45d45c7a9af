"""Fine-tuning tasks, and pretraining's. Importing this package registers all of them."""

from tasks import superglue
from tasks.registry import TASKS, build_task, register_task, task_name

__all__ = ["TASKS", "build_task", "register_task", "superglue", "task_name"]
