"""Packaging. Detectron2 is not among the requirements: it is on no index, see tools/setup.sh."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "focal_det/__init__.py").read_text()).group(1)

setup(
    name="focal_det",
    version=VERSION,
    description="A complete RetinaNet with focal loss, as a Detectron2 plug-in",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["focal_det", "focal_det.*"]),
    package_data={"focal_det.paper": ["tables.yaml"], "focal_det.report": ["*.css", "*.j2"]},
    install_requires=[
        "torch>=2.8,<2.16",
        "torchvision>=0.23",
        "fvcore>=0.1.5,<0.1.6",
        "jinja2",
        "matplotlib",
        "numpy",
        "onnx>=1.19",
        "onnxruntime>=1.23",
        "onnxscript>=0.5",
        "opencv-python-headless",
        "pillow>=10.1",
        "pycocotools>=2.0.11",
        "pyyaml",
        "tabulate",
        "tqdm",
        # What Detectron2 imports at this commit, since it is installed without its own requirements.
        "black",
        "cloudpickle",
        "hydra-core>=1.1",
        "iopath>=0.1.7,<0.1.10",
        "omegaconf>=2.1,<2.4",
        "packaging",
        "tensorboard",
        "termcolor>=1.1",
        "yacs>=0.1.8",
    ],
    entry_points={"console_scripts": ["focal-det = focal_det.cli.main:main"]},
    extras_require={"dev": ["hypothesis", "mpmath", "mypy", "pytest", "pytest-cov", "pytest-xdist", "ruff"]},
)
