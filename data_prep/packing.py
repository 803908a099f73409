"""What the jobs of data_prep/ share: a TFDS data set written in parts that survive a kill, over all
cores.

A data set is cut into parts, each of which becomes one TFRecord file and is a function of its
examples alone: whichever process writes it, and however often the job was killed, the bytes are the
same. A finished part is kept, with a note of what it was made from. dataset_info.json, without
which no reader sees the data set, is put there last.

    DATA_DIR/<name>/<version>/               files of finished parts, at last features.json
                                             and dataset_info.json
    DATA_DIR/<name>/<version>/unfinished/    parts being written, notes on finished ones; goes
                                             when all is done
"""

import concurrent.futures
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
import tqdm
from absl import app, flags, logging
from tensorflow_datasets.core import file_adapters

from data_prep import manifest, options, sources
from hamgan import choices
from hamgan.data import photos
from hamgan.run import records

VERSION = "1.0.0"  # of packed data sets
SHARD_BYTES = choices.SHARD_MB * 10**6

_INFO = "dataset_info.json"
_UNFINISHED = "unfinished"
_SETTINGS = "prepared_from.json"
_DECODER = 2  # 1: photographs by Pillow, data sets by TensorFlow, which disagreed
_NUM_NAMED = 20  # bad files named in a message; the list has all of them


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of a data set.

    Attributes:
      split: the split it belongs to.
      examples: what is in it, in order; an iterable of objects with a `name`, which can be pickled,
        and whose `repr` tells one set of examples from another.
      num_examples: how many they are.
      num_bytes: how much they will take, about.
    """

    split: str
    examples: Any
    num_examples: int
    num_bytes: int


class Encoded(NamedTuple):
    """A record, and what is kept of the image that it was made from.

    Attributes:
      record: bytes.
      side: the shorter side of the image in pixels; None: isn't asked.
      file: [bytes, CRC-32] of the file; None: isn't kept.
    """

    record: bytes
    side: int | None = None
    file: list[int] | None = None


def cut(num_examples: int, num_parts: int) -> Iterator[tuple[int, int]]:
    """Borders (start, stop) of `num_parts` parts that differ in length by one at most, as TFDS
    draws them.
    """
    borders = [round(num_examples * index / num_parts) for index in range(num_parts + 1)]
    return zip(borders[:-1], borders[1:], strict=True)


def is_done(folder: str, settings: Mapping[str, Any]) -> bool:
    """Whether `folder` holds the whole data set of these settings.

    Raises:
      ValueError: when what it holds, finished or not, was made with others.
    """
    path = os.path.join(folder, _SETTINGS)
    done = tf.io.gfile.exists(os.path.join(folder, _INFO))
    if tf.io.gfile.exists(path):
        there = json.loads(_read(path))
        wanted = dict(settings)
        if done and "decoder" not in there:  # of an earlier version; unfinished ones aren't mixed
            for decoding in (there, wanted):
                decoding.pop("decoder", None), decoding.pop("decoding", None)
        if there != wanted:
            raise ValueError(
                f"{folder} belongs to a data set prepared from {there}, which isn't "
                f"{dict(settings)}: "
                "choose another --name, or remove that folder."
            )
    elif done:
        raise ValueError(
            f"{folder} holds a data set that wasn't prepared by this job: choose another --name."
        )
    return done


def write(
    parts: Sequence[Part],
    *,
    folder: str,
    info: tfds.core.DatasetInfo,
    encode: Callable[[Any], bytes],
    settings: Mapping[str, Any],
    num_workers: int,
    skip_bad: bool | None = None,
    size: int | None = None,
    min_side: int = 1,
    content: Mapping[str, str] | None = None,
) -> None:
    """Writes the parts that aren't written yet, then the data set's description.

    Args:
      parts: all parts of the data set, those of a split in the order of their files.
      folder: where the data set goes, <data_dir>/<name>/<version>.
      info: name and features of the data set; is given the splits.
      encode: an example -> its record, or `Encoded`. What it raises makes the example a bad one.
        It must be possible to pickle it.
      settings: what the records depend on beside the examples; JSON.
      num_workers: processes; with 1, or a single part to write, all is done in this one.
      skip_bad: leave bad examples out, instead of stopping when all parts have been gone through;
        None: as False, where the data set allows nothing else.
      size: of the squares that images become: smaller images are counted, and which files there
        were is kept (see `manifest`); None: neither.
      min_side: images with a shorter side are left out.
      content: as for `manifest.write`.

    Raises:
      ValueError: bad examples, listed; no examples; not enough space.
    """
    unfinished = os.path.join(folder, _UNFINISHED)
    tf.io.gfile.makedirs(unfinished)
    records.write_whole(os.path.join(folder, _SETTINGS), json.dumps(dict(settings)).encode())

    jobs = _jobs(parts, folder, info.name, settings, encode, size or 0, min_side)
    notes = {job.path: note for job in jobs if (note := _find_note(job, skip_bad=skip_bad))}
    todo = [job for job in jobs if job.path not in notes]
    _announce(info.full_name, folder, jobs, todo)
    try:
        for path, note in _run(
            todo, num_workers, finished=sum(note["num_examples"] for note in notes.values())
        ):
            notes[path] = note
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"There is no space left for {error.filename}. Finished parts are kept: make space and "
            "run this again."
        ) from error

    bad = [f"{name}: {reason}" for job in jobs for name, reason in notes[job.path]["bad"]]
    _report_bad(bad, os.path.join(folder, "bad_files.txt"), skip_bad=skip_bad)
    if size:
        of_split = {}
        for job in jobs:
            of_split.setdefault(job.part.split, []).append(notes[job.path])
        classes = info.features["label"].names
        manifest.write(folder, of_split, classes=classes, content=content)
    _finish(info, folder, jobs, notes)
    tf.io.gfile.rmtree(unfinished)


def _squares_info(source, *, name, size):
    """What TFDS keeps of a data set of squares."""
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=name, version=tfds.core.Version(VERSION), data_dir="", module_name=""
        ),
        description=(
            f"{source.identity} as squares of {size} x {size}: central crop, bilinear, uint8."
        ),
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(
                    shape=(size, size, 3), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
                ),
                "label": tfds.features.ClassLabel(names=source.class_names),
            }
        ),
        supervised_keys=("image", "label"),
    )
    info.set_file_format(file_adapters.FileFormat.TFRECORD)
    return info


def _check_arguments(name, **numbers):
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"name ({name!r}) must be small letters, digits and underscores, a letter first: give "
            "--name."
        )
    for argument, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{argument} ({value}) must be at least 1.")


def _square_parts(source, *, size, shard_bytes):
    record_bytes = size * size * 3 + 70  # names of the features, label, lengths and checksums
    parts = []
    for split, count in source.num_examples.items():
        num_parts = math.ceil(count * record_bytes / max(shard_bytes, record_bytes))
        for start, stop in cut(count, num_parts):
            examples = source.examples(split, start, stop)
            parts.append(Part(split, examples, stop - start, (stop - start) * record_bytes))
    if source.ignored:
        print(
            f"Passed over, not images by their suffix: {len(source.ignored)} files, such as "
            f"{min(source.ignored)}"
        )
        for line in sources.hidden_images(source.ignored):
            print(f"WARNING: {line}")
    return parts


def pack(
    source: sources.Tree | sources.Prepared,
    *,
    data_dir: str,
    decode: Callable[[bytes, int], np.ndarray],
    size: int = 128,
    name: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    num_workers: int | None = None,
    skip_bad: bool = False,
    max_pixels: int = photos.MAX_PIXELS,
    min_side: int = 1,
) -> tuple[str, bool]:
    """Writes the images of a source as a data set of size x size squares.

    Its features are `image`, uint8 [size, size, 3], raw bytes, and `label`, with the source's class
    names; its splits are the source's.

    Args:
      source: where images and labels come from.
      data_dir: folder of TFDS data sets to put it into, local or gs://.
      decode: (encoded image, size) -> uint8 [size, size, 3]: `sources.decode_as_stored` or
        `sources.decode_photo`.
      size: S.
      name: the new data set's: small letters, digits, underscores; None: <name of the
        source>_<size>.
      shard_bytes: the most that a file holds; files of a split hold between half of it and all, or
        there is one.
      num_workers: processes; None: one per core.
      skip_bad: leave out what can't be decoded.
      max_pixels: images with more (width times height) can't be used.
      min_side: images with a shorter side are left out.

    Returns:
      The data set's folder, and whether this call wrote it.

    Raises:
      ValueError: an argument out of range, a source that can't be used, bad images, not enough
        space; the data set is there, and the source has other images by now.
    """
    name = name or f"{source.name}_{size}"
    _check_arguments(
        name,
        size=size,
        shard_bytes=shard_bytes,
        num_workers=num_workers,
        max_pixels=max_pixels,
        min_side=min_side,
    )
    folder = os.path.join(os.path.expanduser(data_dir), name, VERSION)
    settings = {"source": source.identity, "size": size, "decoding": decode.__name__}
    settings |= {"decoder": _DECODER, **({"min_side": min_side} if min_side > 1 else {})}
    if is_done(folder, settings):
        manifest.check_same(source, folder, name)
        return folder, False

    info = _squares_info(source, name=name, size=size)
    parts = _square_parts(source, size=size, shard_bytes=shard_bytes)
    if max_pixels != photos.MAX_PIXELS:
        decode = functools.partial(decode, max_pixels=max_pixels)
    content = getattr(source, "content", None)
    write(
        parts,
        folder=folder,
        info=info,
        encode=functools.partial(_encode_square, features=info.features, decode=decode, size=size),
        settings=settings,
        num_workers=num_workers or os.cpu_count(),
        skip_bad=skip_bad,
        size=size,
        min_side=min_side,
        content=content and {split: content(split) for split in source.num_examples},
    )
    return folder, True


def pack_by_flags(source: sources.Tree | sources.Prepared, **kwargs) -> str:
    """`pack` with the flags of a job that packs, and a line on what came of it; returns the data
    set's folder.
    """
    flag = flags.FLAGS
    folder, written = pack(
        source,
        size=flag.size,
        name=flag.name,
        shard_bytes=flag.shard_mb * 10**6,
        num_workers=flag.num_workers,
        skip_bad=flag.skip_bad,
        max_pixels=flag.max_pixels,
        min_side=flag.min_side,
        **kwargs,
    )
    if small := manifest.describe_enlarged(folder, flag.size):
        print(f"WARNING: {small}")
    print(describe(folder, written))
    return folder


def run(main: Callable[[], None]):
    """Runs a job's main function; wrong use ends with one readable message instead of a stack of
    calls.
    """

    def guarded(argv):
        del argv  # looked at by options.read
        logging.set_verbosity(logging.ERROR)
        try:
            main()
        except (ValueError, OSError, tf.errors.OpError) as error:
            sys.exit(f"\nERROR: {error}")
        except KeyboardInterrupt:
            sys.exit("\nInterrupted. Run the same command again: what is finished is kept.")

    # They are there, but where a job's file is run inside of another process.
    if not options.define():
        raise RuntimeError("This process wasn't started for a job of data_prep, which has flags.")
    app.run(guarded)


def describe(folder: str, written: bool) -> str:
    """One line on a finished data set."""
    info = tfds.builder_from_directory(folder).info
    splits = ", ".join(f"{name} {split.num_examples:,}" for name, split in info.splits.items())
    classes = info.features["label"].num_classes
    found = "Wrote" if written else "Found, nothing to do:"
    return f"{found} {info.full_name} ({splits}; {classes:,} classes): {folder}"


@dataclasses.dataclass(frozen=True)
class _Job:
    """A part, where it goes, and how; what a worker is given."""

    part: Part
    path: str
    digest: str
    encode: Callable[[Any], bytes | Encoded]
    size: int
    min_side: int

    @property
    def temporary(self) -> str:
        folder, file = os.path.split(self.path)
        return os.path.join(folder, _UNFINISHED, file)

    @property
    def note(self) -> str:
        return self.temporary + ".json"


def _jobs(parts, folder: str, name: str, settings, encode, size, min_side) -> list[_Job]:
    numbers = {split: itertools.count() for split in {part.split for part in parts}}
    jobs = []
    for part in parts:
        count = sum(other.split == part.split for other in parts)
        file = f"{name}-{part.split}.tfrecord-{next(numbers[part.split]):05}-of-{count:05}"
        digest = hashlib.sha256(repr((dict(settings), part.examples)).encode()).hexdigest()
        jobs.append(_Job(part, os.path.join(folder, file), digest, encode, size, min_side))
    return jobs


def _find_note(job: _Job, *, skip_bad: bool | None) -> dict[str, Any] | None:
    """The note on a part that needn't be written again."""
    try:
        note = json.loads(_read(job.note))
    except tf.errors.NotFoundError:
        return None
    if (
        note["digest"] != job.digest
        or (note["bad"] and not skip_bad)
        or not tf.io.gfile.exists(job.path)
    ):
        return None
    bad = {name for name, _ in note["bad"]}
    # Images that have been repaired since are no longer left out.
    repaired = bad and any(
        _record_or_fault(job, e)[0] is not None for e in job.part.examples if e.name in bad
    )
    return None if repaired else note


def _announce(name: str, folder: str, jobs: Sequence[_Job], todo: Sequence[_Job]):
    """Says what will be written, and refuses when there is no room for it."""
    counts = {}
    for job in jobs:
        counts[job.part.split] = counts.get(job.part.split, 0) + job.part.num_examples
    total = sum(job.part.num_bytes for job in jobs)
    missing = sum(job.part.num_bytes for job in todo)
    splits = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    free = None if "://" in folder else shutil.disk_usage(folder).free
    print(
        f"{name}: {splits} images, {total / 1e9:,.2f} GB in {len(jobs)} files"
        + (f", of which {len(jobs) - len(todo)} are finished" if len(todo) < len(jobs) else "")
        + (
            f"; {free / 1e9:,.2f} GB are free in {folder}" if free is not None else f"; to {folder}"
        ),
        flush=True,
    )
    if free is not None and missing > free:
        raise ValueError(
            f"{folder} has {free / 1e9:,.2f} GB free, and {missing / 1e9:,.2f} GB are to be "
            "written: make space, or "
            "choose a folder on another disk. Finished parts are kept."
        )


def _run(
    jobs: Sequence[_Job], num_workers: int, finished: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Writes parts; gives (path, note) of each as it is finished."""
    total = finished + sum(job.part.num_examples for job in jobs)
    num_workers = min(num_workers, len(jobs))
    with tqdm.tqdm(total=total, initial=finished, unit=" images", disable=not jobs) as bar:
        if num_workers <= 1:
            for job in jobs:
                yield job.path, _write_part(job, advance=bar.update)
            return
        # TensorFlow's threads don't survive a fork.
        context = multiprocessing.get_context("spawn")
        counter = context.Value("q", 0)
        pool = concurrent.futures.ProcessPoolExecutor(
            num_workers, mp_context=context, initializer=_start_worker, initargs=(counter,)
        )
        try:
            path_of = {pool.submit(_write_part_in_worker, job): job.path for job in jobs}
            waiting = set(path_of)
            while waiting:
                done, waiting = concurrent.futures.wait(
                    waiting, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
                )
                bar.update(finished + counter.value - bar.n)
                for future in done:
                    yield path_of[future], future.result()
        except concurrent.futures.BrokenExecutor as error:
            raise ValueError(
                f"A process was killed, perhaps for want of memory; num_workers ({num_workers}) "
                "must be fewer then. "
                "Finished parts are kept."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(counter):
    global _counter
    _counter = counter
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    logging.set_verbosity(logging.ERROR)  # TFDS warns of its own old names, for each part
    # One core each: the processes share the machine among them.
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    # Ctrl-C is for the first process; workers end with the part they are at.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed job must not leave processes behind that write into the next one's files.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _write_part_in_worker(job: _Job) -> dict[str, Any]:
    def advance(count):
        with _counter.get_lock():
            _counter.value += count

    return _write_part(job, advance)


def _write_part(job: _Job, advance: Callable[[int], Any]) -> dict[str, Any]:
    """Writes one part, and the note on it, which it returns."""
    try:
        note = _write_records(job, advance)
        if tf.io.gfile.exists(job.note):  # on the file that is now replaced
            tf.io.gfile.remove(job.note)
        tf.io.gfile.rename(job.temporary, job.path, overwrite=True)
        records.write_whole(job.note, json.dumps(note).encode())
    except tf.errors.ResourceExhaustedError as error:
        if tf.io.gfile.exists(job.temporary):
            tf.io.gfile.remove(job.temporary)
        raise OSError(errno.ENOSPC, error.message, job.path) from error
    return note


def _write_records(job: _Job, advance: Callable[[int], Any]) -> dict[str, Any]:
    num_examples = num_bytes = 0
    bad, enlarged, left_out, files = [], [], [], []
    with tf.io.TFRecordWriter(job.temporary) as writer:
        for example in job.part.examples:
            encoded, fault = _record_or_fault(job, example)
            advance(1)
            files.append([example.name, (encoded and encoded.file) or [None, None]])
            if encoded is None:
                bad.append([example.name, fault])
                continue
            if encoded.side is not None and encoded.side < job.min_side:
                left_out.append([example.name, encoded.side])
                continue
            if encoded.side is not None and encoded.side < job.size:
                enlarged.append([example.name, encoded.side])
            writer.write(encoded.record)
            num_examples += 1
            num_bytes += len(encoded.record)
    note = {"digest": job.digest, "num_examples": num_examples, "num_bytes": num_bytes, "bad": bad}
    if job.size:
        note |= {"enlarged": enlarged, "left_out": left_out, "files": files}
    return note


def _record_or_fault(job: _Job, example) -> tuple[Encoded | None, str]:
    """An example's record, or None and what is wrong with its image."""
    try:
        found = job.encode(example)
        encoded = found if isinstance(found, Encoded) else Encoded(found)
        # TFDS leaves the order of a record's features to a hash that differs between processes.
        record = tf.train.Example.FromString(encoded.record).SerializeToString(deterministic=True)
        return encoded._replace(record=record), ""
    except (MemoryError, tf.errors.UnavailableError, tf.errors.DeadlineExceededError):
        raise  # not the image's fault
    except Exception as error:  # a damaged image makes decoders raise all sorts of things
        return None, f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _encode_square(example, *, features, decode, size: int) -> Encoded:
    if example.label < 0:  # as TFDS marks test splits
        raise ValueError("it has no label: leave its split out, with --splits")
    content = example.read()
    record = features.serialize_example({"image": decode(content, size), "label": example.label})
    # Of a data set the files aren't known one by one.
    is_file = isinstance(example, sources.Stored)
    file = [len(content), zlib.crc32(content)] if is_file else None
    return Encoded(record, photos.side_of(content), file)


def _report_bad(bad: Sequence[str], path: str, *, skip_bad: bool | None):
    """Lists bad files, and refuses them unless they are to be left out."""
    if not bad:
        if tf.io.gfile.exists(path):  # of an earlier run
            tf.io.gfile.remove(path)
        return
    records.write_whole(path, "\n".join([*bad, ""]).encode())
    more = f"\n  and {len(bad) - _NUM_NAMED} more" if len(bad) > _NUM_NAMED else ""
    named = "".join(f"\n  {line}" for line in bad[:_NUM_NAMED]) + more
    if skip_bad:
        print(f"Left out {len(bad)} bad files, listed in {path}:{named}")
        return
    raise ValueError(
        f"{len(bad)} files can't be used, listed in {path}:{named}\n"
        + (
            "Get them again, and run this again"
            if skip_bad is None
            else "Repair them, or leave them out with --skip_bad"
        )
        + ". All other work is kept."
    )


def _finish(
    info: tfds.core.DatasetInfo,
    folder: str,
    jobs: Sequence[_Job],
    notes: Mapping[str, dict[str, Any]],
):
    """Puts the description of a data set beside its files, dataset_info.json last, and clears away
    what isn't its.
    """
    splits = []
    for split in dict.fromkeys(job.part.split for job in jobs):
        of_split = [notes[job.path] for job in jobs if job.part.split == split]
        lengths = [note["num_examples"] for note in of_split]
        if not sum(lengths):
            raise ValueError(
                f"Split {split!r} of {info.name} must have images; all of its files are bad."
            )
        splits.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=sum(n["num_bytes"] for n in of_split)
            )
        )
    info.set_splits(tfds.core.splits.SplitDict(splits))
    # Files of an earlier attempt, over a source with more or fewer images.
    names = {os.path.basename(job.path) for job in jobs}
    for name in tf.io.gfile.listdir(folder):
        if ".tfrecord-" in name and name not in names:
            tf.io.gfile.remove(os.path.join(folder, name))
    with tempfile.TemporaryDirectory() as written:
        info.write_to_directory(written)
        for path in sorted(pathlib.Path(written).iterdir(), key=lambda path: path.name == _INFO):
            records.write_whole(os.path.join(folder, path.name), path.read_bytes())


def _read(path: str) -> str:
    with tf.io.gfile.GFile(path, "r") as file:
        return file.read()
