"""What a trained network has learned: real images found again, and the parts of a ham."""
