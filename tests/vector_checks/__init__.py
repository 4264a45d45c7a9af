"""One module an area; each maps case names (globs) to a function that checks a case folder."""
