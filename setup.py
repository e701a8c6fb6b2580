"""Package metadata. The wheel is the library; configs/, experiments/ and tools/ run from a checkout."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "sam_d2/__init__.py").read_text(), re.MULTILINE)
assert VERSION is not None, "sam_d2/__init__.py has no __version__"

INSTALL_REQUIRES = [
    "torch>=2.6",  # the first whose torch.load reads tensors only by default
    "torchvision>=0.21",  # the one of torch 2.6
    "fvcore>=0.1.5",  # transforms, checkpointer, schedules, focal loss
    "iopath>=0.1.9",  # Detectron2's PathManager
    "omegaconf>=2.3",  # configs
    "hydra-core>=1.3",  # the grammar of overrides
    "PyYAML>=6.0",  # config.yaml
    "pycocotools>=2.0.7",  # RLE, the reference evaluator
    "faster-coco-eval>=1.6",  # the same evaluation in a fraction of the time
    "segment-anything>=1.0",  # SAM's modules
    "msgspec>=0.18",  # dataset files into typed records
    "numpy>=1.26",
    "scipy>=1.11",  # distance transform: the point farthest from a mask's border
    "shapely>=2.0",  # fvcore cuts polygons with it where an image is cropped
    "opencv-python-headless>=4.8",  # headless: opencv-python needs libGL, which servers lack
    "Pillow>=10.0",
    "matplotlib>=3.8",
    "supervision>=0.30",  # drawing; the first that does not bring opencv-python with it
    "tensorboard>=2.14",
    "rich>=13.0",  # the live progress line
    "tabulate>=0.9",
    "termcolor>=2.0",
    "cloudpickle>=2.2",  # datasets and configs that travel to spawned processes
]
EXTRAS_REQUIRE = {
    "wandb": ["wandb>=0.19"],  # the oldest that was tried; 0.16 does not import with NumPy 2
    "lora": ["peft>=0.21"],  # the oldest that was tried
    # What an installed Detectron2 imports beyond the above; pkg_resources left setuptools with version 81.
    "parity": ["yacs>=0.1.8", "packaging", "setuptools<81", "timm>=1.0"],  # timm: two layers of the real MViT
    "benchmarks": ["transformers>=5.0"],  # a peer of tools/benchmark.py; the oldest that was tried
    "fuzz": ["atheris>=3.0.0"],  # tools/fuzz.py --guided; the oldest that was tried; no wheel for every system
    "dev": ["pytest>=8.0", "pytest-xdist>=3.5", "ruff>=0.9", "mypy>=1.11", "setuptools>=70.1", "hypothesis>=6.100"],
}

setup(
    name="sam_d2",
    version=VERSION[1],
    description="Fine-tune and run the Segment Anything Model with Detectron2's trainer",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the sam_d2 authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_namespace_packages(include=["sam_d2", "sam_d2.*"]),
    package_data={"sam_d2": ["py.typed", "evaluation/report.css", "evaluation/report.js"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
