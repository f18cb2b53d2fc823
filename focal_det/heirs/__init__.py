"""Losses that came after the focal loss, each registered as a dense loss."""
