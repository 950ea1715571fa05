"""Callbacks, and the files and pictures that they write."""
