"""What is drawn of a checkpoint: which images, on what paths between them, into what files."""
