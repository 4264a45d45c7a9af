"""Make tests/vectors.tar.xz from a folder of cases: `python -m tests.pack_vectors DIR`.

The same folder gives the same bytes: sorted names, no times, no owners.
"""

import argparse
import lzma
import tarfile
from collections.abc import Sequence
from pathlib import Path

ARCHIVE = Path(__file__).with_name("vectors.tar.xz")


def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """An entry without what differs between machines."""
    info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
    info.mode = 0o755 if info.isdir() else 0o644
    return info


def pack(folder: Path, archive: Path = ARCHIVE) -> None:
    """Write the archive; inside, the cases lie in `vectors/`."""
    with (
        lzma.open(archive, "wb", preset=9 | lzma.PRESET_EXTREME) as out,
        tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in [folder, *sorted(folder.rglob("*"))]:
            name = Path("vectors", path.relative_to(folder)).as_posix()
            tar.add(path, arcname=name, recursive=False, filter=plain)


def main(argv: Sequence[str] | None = None) -> None:
    """Pack the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.pack_vectors", description=__doc__)
    parser.add_argument("dir", type=Path, help="folder with one folder a case")
    pack(parser.parse_args(argv).dir)


if __name__ == "__main__":
    main()
