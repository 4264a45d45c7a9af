"""Is a text English? For --filter-english; by py3langid, which ships its model."""

from functools import cache
from typing import Any

LOOKED_AT = 2000  # characters that are enough to tell


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ImportError("--filter-english needs py3langid: pip install py3langid") from None
    return LanguageIdentifier.from_pickled_model(MODEL_FILE)


def is_english(text: str) -> bool:
    """Whether English is the likeliest language of the start of a text.

    ImportError that says what to install.
    """
    return _identifier().classify(text[:LOOKED_AT])[0] == "en"
