"""What is in the wheel and the source archive of a release: `python scripts/release_contents.py dist`."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

LARGEST = 1_000_000
"""Bytes that a file of a release may have: code and its pages, no results and no data."""

ALLOWED = {
    "wheel": ("lightning_lr/", "lightning_lr_command/", "lightning_lr-{version}.dist-info/"),
    "source archive": (
        "src/lightning_lr/", "src/lightning_lr_command/", "CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md",
        "pyproject.toml", "PKG-INFO", ".gitignore",
    ),
}  # fmt: skip


def names_in(path: Path) -> tuple[str, str, list[str]]:
    """The kind of a release's file, its version, and the names of what it holds."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return "wheel", path.name.split("-")[1], wheel.namelist()
    with tarfile.open(path) as archive:
        root = path.name.removesuffix(".tar.gz")
        names = [m.name.removeprefix(f"{root}/") for m in archive.getmembers() if m.isfile()]
    return "source archive", root.rpartition("-")[2], names


def faults_of(path: Path) -> list[str]:
    """A sentence for each thing that is wrong with a file of a release."""
    kind, version, names = names_in(path)
    allowed = tuple(place.format(version=version) for place in ALLOWED[kind])
    faults = [f"{path.name}: {name} does not belong into the {kind}" for name in names if not name.startswith(allowed)]
    if not any(name.endswith("lightning_lr/py.typed") for name in names):
        faults.append(f"{path.name}: py.typed is missing, so type checkers ignore the annotations")
    if path.stat().st_size > LARGEST:
        faults.append(f"{path.name}: {path.stat().st_size:,} bytes; at most {LARGEST:,}")
    return faults


def main(folder: Path) -> int:
    """Print what each file of a release holds; 1 where something is wrong."""
    faults = []
    for path in sorted(folder.iterdir()):
        kind, _, names = names_in(path)
        suffixes = Counter(Path(name).suffix or "other" for name in names)
        held = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common())
        print(f"{path.name} ({kind}): {path.stat().st_size / 1e3:.0f} kB, {len(names)} files ({held})")
        faults += faults_of(path)
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
