"""From a folder of images to a configuration: `retina init`."""
