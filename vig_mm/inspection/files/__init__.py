"""Faults in single files: images, label maps, COCO annotations."""
