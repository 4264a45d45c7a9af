"""Tasks whose answers are texts: summaries, questions, answers, blanks."""

from tasks.seq2seq import answering, blanks, summaries

__all__ = ["answering", "blanks", "summaries"]
