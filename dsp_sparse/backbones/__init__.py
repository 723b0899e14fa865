"""Segmentation networks behind one feature interface."""
