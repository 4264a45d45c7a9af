"""Rows of named corpora: what the seed makes of them, as (prompt, text).

A prompt is context: where a sample's rest is generated, its tokens are no targets. None leaves a
row out, as the seed does.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

Text = tuple[str, str]  # prompt, text

LEAST = 100  # characters; news and web pages of less are left out
VOTES = 1000  # an answer with more up-votes may be short
NOT_IN_PILE = frozenset(
    ("Github", "StackExchange", "DM Mathematics", "Ubuntu IRC", "EuroParl")
    + ("YoutubeSubtitles", "Enron Emails")
)
THINNED_IN_PILE = frozenset(("PubMed Central", "ArXiv", "FreeLaw"))
KEPT_IN_PILE = 0.3
# "question:", "description:", "answer", "user:", "answer:" of the seed's prompts
QUESTION, DESCRIPTION = "\u95ee\u9898\uff1a", "\u95ee\u9898\u63cf\u8ff0\uff1a"
ANSWERED_BY, ANSWER = "\u56de\u7b54\u7528\u6237\uff1a", "\u56de\u7b54\uff1a"


def text_of(row: Mapping[str, Any], *names: str) -> str:
    """The first of the named fields that holds text, else "". ValueError: none is there."""
    for name in names:
        if isinstance(row.get(name), str):
            return row[name]
    if not any(name in row for name in names):
        raise ValueError(f"no field {' or '.join(map(repr, names))}; has {', '.join(row)}")
    return ""


def _long(text: str) -> Text | None:
    return ("", text) if len(text) > LEAST else None


def web_page(row: Mapping[str, Any]) -> Text | None:
    """openwebtext: `text`, of more than 100 characters."""
    return _long(text_of(row, "text"))


def news(row: Mapping[str, Any]) -> Text | None:
    """cc-news: title, description (unless the text starts with it) and text."""
    title, about = text_of(row, "title"), text_of(row, "description")
    body = text_of(row, "maintext", "text")
    parts = [title, "" if body.startswith(about.strip()) else about, body]
    return _long(" ".join(part.strip() for part in parts if part.strip()))


def pile(row: Mapping[str, Any]) -> Text | None:
    """The Pile without code, mathematics and dialogues; 30% of three large parts."""
    text, meta = text_of(row, "text"), row.get("meta")
    part = meta.get("pile_set_name") if isinstance(meta, Mapping) else None
    if part is None:
        raise ValueError(f"no field 'meta.pile_set_name'; has {', '.join(row)}")
    if part in NOT_IN_PILE or not text.strip():
        return None
    if part in THINNED_IN_PILE:  # by the text itself: the same rows each time
        draw = int.from_bytes(
            hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()
        )
        if draw >= KEPT_IN_PILE * 2**64:
            return None
    return "", text


def zhihu(row: Mapping[str, Any]) -> Text | None:
    """Questions and answers: long answers, or those with many votes."""
    answer, votes = text_of(row, "ans-content"), str(row.get("ans-up-num") or 0)
    if not votes.isdecimal():
        raise ValueError(f"'ans-up-num' is {votes!r}, no number")
    if len(answer) <= LEAST and int(votes) <= VOTES:
        return None
    about = text_of(row, "q-content") if "q-content" in row else ""
    about = about[:LEAST] + "......" if len(about) > LEAST else about
    prompt = QUESTION + text_of(row, "q_title") + DESCRIPTION + about
    return f"{prompt}{ANSWERED_BY}{row.get('user-signature') or ''} {ANSWER}", answer


def zhidao(row: Mapping[str, Any]) -> Text | None:
    """Questions and their best answers."""
    answers = row.get("best_answer") or {}
    answer = answers.get("content") if isinstance(answers, Mapping) else answers
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"no text under 'best_answer.content'; has {', '.join(row)}")
    about = row.get("q_content") or ""
    prompt = QUESTION + text_of(row, "title") + (DESCRIPTION + about if about else "")
    return prompt + ANSWER, answer


def encyclopedia(row: Mapping[str, Any]) -> Text | None:
    """baike: title, abstract, content."""
    parts = [text_of(row, "title"), text_of(row, "abstract") if "abstract" in row else ""]
    body = "\n".join(part for part in [*parts, text_of(row, "content")] if part.strip())
    return ("", body) if body else None


def article(row: Mapping[str, Any]) -> Text | None:
    """wudao: title as prompt, content of more than 100 characters."""
    body = text_of(row, "content")
    return (text_of(row, "title"), body) if len(body) > LEAST else None


def prompted(row: Mapping[str, Any]) -> Text | None:
    """`prompt` and `text`."""
    text = text_of(row, "text")
    if not text.strip():
        raise ValueError("'text' is empty")
    return text_of(row, "prompt"), text


FORMATS: dict[str, Callable[[Mapping[str, Any]], Text | None]] = {
    "web": web_page,
    "cc-news": news,
    "pile": pile,
    "zhihu": zhihu,
    "zhidao": zhidao,
    "baike": encyclopedia,
    "wudao": article,
    "prompt": prompted,
}
