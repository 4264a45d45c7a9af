"""Is this interpreter's environment complete? Exit status 0 if so; `--explain` says what is not.

Complete: every version of requirements.txt is installed (a local build such as 2.13.0+cpu counts)
and the project itself is installed from this checkout.
"""

import json
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parent.parent


def problems(root: Path = ROOT) -> list[str]:
    """One line for everything that is missing or has another version."""
    found = []
    for line in (root / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, wanted = line.strip().partition("==")
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(f"{name}: not installed; requirements.txt has {wanted}")
            continue
        if version.split("+")[0] != wanted:
            found.append(f"{name}: {version} is installed; requirements.txt has {wanted}")
    source = installed_from()
    if source != root:
        found.append(f"glm-distill: installed from {source}; this checkout is {root}")
    return found


def installed_from() -> Path | None:
    """The folder that `pip install -e` was given; None if the project is not installed so.

    Building leaves an .egg-info of the same name in the checkout: it names no folder.
    """
    texts = (
        found.read_text("direct_url.json") for found in metadata.distributions(name="glm-distill")
    )
    url = next((json.loads(text)["url"] for text in texts if text), None)
    return Path(unquote(urlparse(url).path)).resolve() if url else None


if __name__ == "__main__":
    lines = problems()
    if "--explain" in sys.argv:
        print("\n".join(lines) if lines else "environment complete")
    sys.exit(bool(lines))
