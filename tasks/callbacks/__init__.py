"""What runs beside training: callbacks, and the files and pictures that they write."""
