"""Jobs that turn images into TFDS datasets, which `hamgan.data.ImageDataset` reads."""
