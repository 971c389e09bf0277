"""Report panels, one file each: a plain record first, then a figure of it."""
