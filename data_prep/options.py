"""The flags of this folder's jobs, which are read before TensorFlow is imported: --help and a wrong
flag take no seconds.
"""

import os
import sys
from collections.abc import Callable

from absl import app, flags

from hamgan import choices
from hamgan.cli import common, paths

_INTO = "Folder of TFDS data sets to write into, local or gs://."


def _digits():
    paths.define_path(
        "data_dir", None, "Folder of TFDS data sets, local or gs://. Default: TFDS's own."
    )


def _digits_features():
    paths.define_path(
        "data_dir", "data", "Folder of the prepared digits; the network is put there too."
    )


def _digits_recognition():
    paths.define_path("model_dir", None, "The run's folder, with samples.npz in it.", required=True)
    paths.define_path("data_dir", "data", "Folder of the prepared digits.")


def _features():
    paths.define_name("data", None, "Name of the prepared data set.", required=True)
    paths.define_path(
        "data_dir", "data", "Folder of the prepared data sets; the network is put there too."
    )
    flags.DEFINE_integer(
        "steps", None, "Batches of 32. Default: 40 times the images, 600 to 6,000.", lower_bound=1
    )


def _folder():
    paths.define_path("image_dir", None, "Folder of the images, local or gs://.", required=True)
    paths.define_path("data_dir", "data", _INTO)
    _packing()


def _imagenet():
    paths.define_path(
        "manual_dir", None, "Folder of the two original archives, as they were downloaded."
    )
    paths.define_path(
        "image_dir", None, "Instead of it: folder that holds the extracted folders train and val."
    )
    paths.define_path("data_dir", "data", _INTO)
    _workers()


def _inception():
    paths.define_path("data_dir", "data", "Folder of the data sets; the network is put there.")
    paths.define_path("path", None, "Folder of a SavedModel that was fetched elsewhere.")


def _pack():
    paths.define_path(
        "dataset",
        None,
        "TFDS name of the data set to pack, e.g. imagenet2012; or a data set's folder.",
    )
    paths.define_path(
        "image_dir", None, "Instead of --dataset: folder tree of images, local or gs://."
    )
    paths.define_path("data_dir", "data", "Folder of TFDS data sets, local or gs://.")
    paths.define_path(
        "output_dir", None, "Folder of TFDS data sets to write into. Default: --data_dir."
    )
    flags.DEFINE_list(
        "splits", [], "With --dataset: splits to pack, with commas between. Default: all."
    )
    _packing()


def _segmentation():
    flags.DEFINE_enum(
        "dataset",
        None,
        choices.SEGMENTATION_SOURCES,
        "Which layout source_dir has.",
        required=True,
    )
    paths.define_path("source_dir", None, "Folder of the data set.", required=True)
    paths.define_path("sbd_dir", None, "voc2012: SBD's folder `dataset`, with cls and the lists.")
    paths.define_path(
        "list_dir", None, "voc2012: folder of the lists. Default: ImageSets/Segmentation."
    )
    paths.define_path("test_dir", None, "voc2012: folder of test images. Default: JPEGImages.")
    flags.DEFINE_boolean("background", False, "pascal_context: background is a class, the first.")
    flags.DEFINE_integer("num_classes", None, "folder: where there is no classes.txt.")
    paths.define_path("data_dir", "data", _INTO)
    flags.DEFINE_string("name", None, "Name of the new data set. Default: after its source.")
    flags.DEFINE_integer(
        "shard_mb",
        choices.SEGMENTATION_SHARD_MB,
        "About the most that a file holds, in MB.",
        lower_bound=1,
    )
    _workers()
    flags.DEFINE_boolean(
        "skip_bad",
        False,
        "Leave out images that can't be used. Without it the job stops after going through all of "
        "them, names the bad ones, and keeps what is finished.",
    )


def _workers():
    flags.DEFINE_integer(
        "num_workers", None, "Processes that work at a time. Default: one per core.", lower_bound=1
    )


def _packing():
    """Of jobs that make squares."""
    flags.DEFINE_string(
        "name", None, "Name of the new data set. Default: <name of the source>_<size>."
    )
    flags.DEFINE_integer(
        "size", 128, "S: images are written as squares of S x S pixels.", lower_bound=1
    )
    flags.DEFINE_integer(
        "shard_mb",
        choices.SHARD_MB,
        "The most that a file holds, in MB; files hold at least half.",
        lower_bound=1,
    )
    _workers()
    flags.DEFINE_integer(
        "max_pixels",
        choices.MAX_PIXELS,
        "Images with more pixels (width times height) count as bad; decoding takes some 10 bytes "
        "for each.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "min_side",
        1,
        "Leave out images whose shorter side has fewer pixels. Smaller ones than --size are "
        "enlarged, and counted.",
        lower_bound=1,
    )
    flags.DEFINE_boolean(
        "skip_bad",
        False,
        "Leave out images that can't be decoded. Without it the job stops after going through all "
        "images, names the bad ones, and keeps what is finished: running it again with --skip_bad "
        "looks at these only.",
    )


# By the names of the jobs' files.
_DEFINITIONS: dict[str, Callable[[], None]] = {
    "digits": _digits,
    "digits_features": _digits_features,
    "digits_recognition": _digits_recognition,
    "features": _features,
    "folder": _folder,
    "imagenet": _imagenet,
    "inception": _inception,
    "pack": _pack,
    "segment_digits": _digits,
    "segmentation": _segmentation,
}


def define() -> bool:
    """Defines the flags of the job that this process was started for, unless they are; returns
    whether it was started for one.
    """
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None) or ""
    # By names alone: the folder may be another one than this module's, of a checkout or by a link.
    folder, name = os.path.split(os.path.abspath(path))
    job = name.removesuffix(".py")
    if os.path.basename(folder) != "data_prep" or job not in _DEFINITIONS:
        return False
    if "data_dir" not in flags.FLAGS:
        # runpy puts the job's file in place of the command's name.
        command = "hamgan-prepare" if "data_prep.commands" in sys.modules else path
        main.__doc__ = common.as_called(main.__doc__, command)
        _DEFINITIONS[job]()
        for flag in flags.FLAGS.get_key_flags_for_module(__name__):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    return True


def read() -> None:
    """Reads the flags of the job that this process was started for; --help and what is wrong end
    it.
    """
    if not define():
        return
    app.define_help_flags()
    rest = app.parse_flags_with_usage(sys.argv)
    if len(rest) > 1:
        app.usage(
            shorthelp=True,
            detailed_error=f"Arguments without a flag name: {rest[1:]}. Write --name=value.",
            exitcode=1,
        )
    # They are read again by app.run, where flags that may be repeated would have all twice.
    flags.FLAGS.unparse_flags()
