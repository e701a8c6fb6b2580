"""Masks made from the boxes of a dataset by SAM: what ``tools/masks_from_boxes.py`` runs.

A run streams: the dataset is indexed on disk (:mod:`sam_d2.labelling.index`), what is made is kept in a journal
(:mod:`sam_d2.labelling.journal`) and joined to the file of the boxes at the end (:mod:`sam_d2.labelling.output`).
"""
