"""Jobs that turn images into TFDS data sets, which `hamgan.data.ImageDataset` reads."""
