"""Where the four files of Fashion-MNIST come from: folders that may hold them already, or the dataset's own address.
Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747."""

import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from torch import Tensor

from examples.data.idx import CorruptFileError, load_idx, read_contents

log = logging.getLogger(__name__)

ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CACHE_VARIABLE = "FASHION_MNIST_DIR"
SHA256 = {  # of the decompressed contents
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def cache_folder() -> Path:
    """The folder that downloads go to: `$FASHION_MNIST_DIR`, or `data/fashion-mnist` below the working directory."""
    return Path(os.environ.get(CACHE_VARIABLE) or "data/fashion-mnist")


def find_folder(data_dir: str | Path | None = None) -> Path | None:
    """The first of `data_dir`, the cache folder and Debian's folder that holds all four files, or None."""
    found = next((folder for folder in _places(data_dir) if _is_complete(folder)), None)
    if data_dir is not None and found not in (None, Path(data_dir)):
        log.warning(f"data_dir={str(data_dir)!r} does not hold the files of Fashion-MNIST; using {found}")
    return found


def require_folder(data_dir: str | Path | None = None) -> Path:
    """As `find_folder`, but having none is an error that names the ways out.

    Raises:
        FileNotFoundError: No folder holds the four files.
    """
    folder = find_folder(data_dir)
    if folder is None:
        raise FileNotFoundError(_ways_out(data_dir, "was not tried: prepare_data() does that"))
    return folder


def fetch_if_missing(data_dir: str | Path | None = None) -> None:
    """Download the files to the cache folder unless a folder holds them already.

    A file gets its name only once its contents are checked: a broken download leaves nothing behind.

    Raises:
        FileNotFoundError: The address cannot be reached, or what arrived is not Fashion-MNIST.
    """
    if find_folder(data_dir) is not None:
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in SHA256:
            if _path(folder, name) is None:
                _download(name, folder)
    except (OSError, HTTPException, CorruptFileError) as error:  # OSError: urllib's URLError and time-outs as well
        raise FileNotFoundError(_ways_out(data_dir, f"failed ({error})")) from error


def load(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N x 28 x 28, uint8) and labels (N, uint8) of `part`, "train" or "t10k".

    Raises:
        CorruptFileError: A checksum does not match.
        FileNotFoundError: `folder` does not hold the part.
    """
    return _load(folder, f"{part}-images-idx3-ubyte"), _load(folder, f"{part}-labels-idx1-ubyte")


def _load(folder: Path, name: str) -> Tensor:
    path = _path(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder} holds neither {name}.gz nor {name}")
    return load_idx(path, SHA256[name])


def _path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _places(data_dir: str | Path | None) -> list[Path]:
    return [*([Path(data_dir)] if data_dir is not None else []), cache_folder(), DEBIAN_FOLDER]


def _is_complete(folder: Path) -> bool:
    return all(_path(folder, name) for name in SHA256)


def _download(name: str, folder: Path) -> None:
    with _temporary(folder / f".{name}.{os.getpid()}.part") as part:
        log.info(f"fetching {ADDRESS}{name}.gz")
        with urllib.request.urlopen(f"{ADDRESS}{name}.gz", timeout=30) as response, part.open("wb") as file:
            while chunk := response.read(1 << 20):
                file.write(chunk)
        read_contents(part, SHA256[name])
        part.replace(folder / f"{name}.gz")


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _ways_out(data_dir: str | Path | None, fetching: str) -> str:
    return (
        f"no Fashion-MNIST in {', '.join(map(str, _places(data_dir)))}, and fetching it from {ADDRESS} {fetching}. "
        "Do one of these: run `make fashion-mnist` (Debian's package, without root); install it with "
        "`apt-get install dataset-fashion-mnist`; put the four files "
        f"{', '.join(f'{name}.gz' for name in SHA256)} (or their plain contents) into a folder and name it with "
        f"data_dir or the environment variable {CACHE_VARIABLE}"
    )
