"""What data sets that need no download have in common: they are written once, by one command."""

import tensorflow_datasets as tfds
from absl import flags

from data_prep import packing


def prepare(builder: tfds.core.DatasetBuilder) -> bool:
    """Writes a data set unless it is there; returns whether this call wrote it."""
    if (builder.data_path / "dataset_info.json").exists():
        return False
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            # A folder without dataset_info.json is what an interrupted rename on gs:// leaves:
            # it is written anew, where the default mode would take it for the data set.
            download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS,
            try_download_gcs=False,
        )
    )
    return True


def run(prepare):
    """The command that calls `prepare` (data_dir -> builder, whether it was written).

    Not to be called on import: a process that imports a module of these may have a flag --data_dir
    itself.
    """

    def main():
        builder, written = prepare(flags.FLAGS.data_dir)
        info = builder.info
        splits = ", ".join(f"{name} {split.num_examples}" for name, split in info.splits.items())
        print(f"{'Wrote' if written else 'Found'} {info.full_name} ({splits}): {builder.data_dir}")

    packing.run(main)
