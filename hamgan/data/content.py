"""What the files of a split hold, as a digest that costs little and is kept."""

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from hamgan.run import records

# Files up to this are read whole.
_SMALL = 16 * 2**20
_BLOCK = 2**16
_BLOCKS = 4
_REMOTE_AT_A_TIME = 32
_CACHE = ".digests.json"


def digest(paths: Iterable[str]) -> str:
    """A digest of files, 'KIND:' and 16 hexadecimal digits, by their contents and not their places.

    Of a small file it is of all bytes, of a large local TFRecord file of the length and checksum
    (CRC-32C) that stand with every record, of a large remote one of its size and of blocks spread
    over it: there a record that changed between two of these blocks isn't noticed. The digests of
    large local files are kept beside them, in `.digests.json`, as long as size, inode and times of
    the file stay; in a folder that can't be written to they are computed each time.

    Args:
      paths: the files, local or remote, in their order.
    """
    paths = sorted(set(map(str, paths)))
    kind = "blocks" if any("://" in path for path in paths) else "records"
    caches: dict[str, dict[str, list]] = {}
    total = hashlib.sha256()
    with ThreadPoolExecutor(_REMOTE_AT_A_TIME if kind == "blocks" else 1) as pool:
        found = pool.map(lambda path: _of_file(path, caches), paths)
        bar = tqdm(found, "digest of the data", len(paths), leave=False, delay=2, unit="file")
        for of_file in bar:
            total.update(of_file.encode())
    for folder, cache in caches.items():
        try:
            if cache.pop("changed", None):
                records.write_whole(os.path.join(folder, _CACHE), json.dumps(cache).encode())
        except (OSError, tf.errors.OpError):
            pass  # reading is enough
    return f"{kind}:{total.hexdigest()[:16]}"


def _of_file(path, caches):
    if "://" in path:
        return _of_blocks(path)
    status = os.stat(path)
    if status.st_size <= _SMALL:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    folder, name = os.path.split(path)
    if folder not in caches:
        caches[folder] = _read_cache(folder)
    # The time of the last change of the inode can't be set back, as cp -p sets the other one.
    state = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    kept = caches[folder].get(name)
    if isinstance(kept, list) and kept[:-1] == state:
        return kept[-1]
    found = _of_records(path, status.st_size)
    caches[folder][name] = [*state, found]
    caches[folder]["changed"] = True
    return found


def _read_cache(folder):
    try:
        with open(os.path.join(folder, _CACHE), "rb") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_records(path, size):
    """Of lengths and checksums; of a file that isn't made of records, of all bytes."""
    total = hashlib.sha256(str(size).encode())
    content = np.memmap(path, np.uint8, "r")
    at = 0
    while at + 16 <= size:
        (length,) = struct.unpack("<Q", content[at : at + 8].tobytes())
        end = at + 16 + length
        if end > size:
            break
        total.update(content[at : at + 12].tobytes())
        total.update(content[end - 4 : end].tobytes())
        at = end
    for start in range(at, size, _SMALL):
        total.update(content[start : start + _SMALL].tobytes())
    return total.hexdigest()


def _of_blocks(path):
    size = tf.io.gfile.stat(path).length
    total = hashlib.sha256(str(size).encode())
    with tf.io.gfile.GFile(path, "rb") as file:
        if size <= _BLOCK * _BLOCKS:
            total.update(file.read())
        else:
            for start in np.linspace(0, size - _BLOCK, _BLOCKS).astype(int).tolist():
                file.seek(start)
                total.update(file.read(_BLOCK))
    return total.hexdigest()
