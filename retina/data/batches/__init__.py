"""From the table to batches of images: which images, how they are read and augmented, for training and evaluation."""
