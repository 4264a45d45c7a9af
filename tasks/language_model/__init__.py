"""Language modelling, evaluated only: LAMBADA, WikiText, texts of one's own."""

from tasks.language_model import task

__all__ = ["task"]
