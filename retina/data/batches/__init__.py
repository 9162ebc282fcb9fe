"""From a table to batches of images: which images, how they are read and augmented, for training and evaluation."""

from typing import Any

Batch = dict[str, Any]
"""`images` [B,H,W,3] uint8, `boxes` [B,G,4] float32 xyxy canvas pixels, `labels` [B,G] int32, `valid` [B,G] bool,
`crowd` [B,G] bool (what training must ignore), `index` [B] int64 (row of the table, -1: filler), `sample` [B] int64,
`scale` [B,2] float32 (vertical, horizontal: canvas pixels per original pixel), `size` [B,2] int32 (h, w before
padding). Invalid slots of `boxes`, `labels` and `crowd` are 0; a filler has size 0 and scale 1.

Of a mosaic or mixup, `index` and `scale` are those of the first image (a mosaic's top left), `size` is that of the
whole; G grows to what the images of one example can hold together, so that no box is ever left out for want of room."""
