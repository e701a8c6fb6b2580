"""The embedded core: the part of Detectron2's interface that sam_d2 uses, without compiled code.

It is on ``sys.path`` only where Detectron2 is not installed, or where ``SAM_D2_DETECTRON2=embedded`` asks
for it. Sub-packages have Detectron2's names, so that a project runs on either.
"""

import os

# OpenCV must not start OpenCL in loader workers: beside CUDA it is slow, and after a fork it can hang.
os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"

__version__ = "0.6+sam_d2"
