"""Fine-tune and run the Segment Anything Model with Detectron2's trainer, on one GPU or none.

Importing this package makes ``import detectron2`` work: the installed Detectron2, or the embedded core
(:mod:`sam_d2.detectron2_source`). It does nothing else.
"""

from sam_d2.detectron2_source import provide_detectron2

__version__ = "0.1.0"

provide_detectron2()
