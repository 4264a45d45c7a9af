"""Is a text English? For --filter-english; by py3langid, which ships its model."""

from importlib.util import find_spec

from config.errors import ConfigError

LOOKED_AT = 2000  # characters that are enough to tell


def need_detector(asked: str) -> None:
    """ConfigError that says what to install for `asked`, a flag or corpus, if it is missing."""
    if find_spec("py3langid") is None:
        raise ConfigError(f"{asked}: needs py3langid, to tell languages: pip install py3langid")


def is_english(text: str) -> bool:
    """Whether English is the likeliest language of the start of a text."""
    from py3langid import classify

    return classify(text[:LOOKED_AT])[0] == "en"
