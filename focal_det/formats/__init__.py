"""Annotation files and images as people have them: read into COCO's form, checked, and completed."""
