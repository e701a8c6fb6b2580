"""The data doctor: all that is wrong with the files of a dataset, and a mended copy. No torch is imported."""
