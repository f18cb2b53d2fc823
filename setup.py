"""Packaging. Detectron2 is not among the requirements: it is on no index, see tools/setup.sh."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "focal_det/__init__.py").read_text()).group(1)

# What exported models, data sets and reports need; with it alone nothing can be trained.
CORE = [
    # Its scores are pycocotools' to the last bit, which the tests hold for this version. Rust, MIT, needs NumPy alone.
    "hotcoco==1.3.0",
    "jinja2",
    "matplotlib",
    "numpy",
    "onnxruntime>=1.23",
    # Or opencv-python-headless in its place, never both; no requirement can say so. `focal-det doctor` knows.
    "opencv-python",
    "packaging",
    "pillow>=10.1",
    "pycocotools>=2.0.11",
    "pyyaml",
    "tabulate",
    "tqdm",
]
TRAIN = [
    "torch>=2.8,<2.16",
    "torchvision>=0.23",
    "fvcore>=0.1.5,<0.1.6",
    # What Detectron2 imports at this commit, since it is installed without its own requirements.
    "black",
    "cloudpickle",
    "hydra-core>=1.1",
    "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1,<2.4",
    "setuptools<81",
    "tensorboard",
    "termcolor>=1.1",
    "yacs>=0.1.8",
]
EXTRAS = {
    "train": TRAIN,
    "export": [*TRAIN, "onnx>=1.19", "onnxscript>=0.5", "safetensors>=0.5"],
    "completion": ["shtab>=1.7"],
    "lvis": ["lvis>=0.5.3"],
    "results": ["pandas>=2", "supervision>=0.27", "trackers>=2.6"],
    "mlflow": ["mlflow>=3.1"],
    "wandb": ["wandb>=0.21"],
    "openvino": ["openvino>=2025.0"],
}
ALL = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
NOTEBOOK = ["ipykernel"]
DEV = [*ALL, *NOTEBOOK, "hypothesis", "mpmath", "mypy", "pytest", "pytest-cov", "pytest-xdist", "ruff"]


def _not_a_configuration(folder, names):
    """Return what stays out of a wheel: links, hidden files, and all that only lies in configs/ of whoever builds."""
    paths = [Path(folder, name) for name in names]
    kept = [p.name for p in paths if (p.is_dir() or p.suffix in (".yaml", ".py")) and not p.is_symlink()]
    return {name for name in names if name not in kept or name.startswith((".", "__"))}


class BuildWithConfigurations(build_py):
    """Put configs/ into the built package, where `focal_det://bccd.yaml` finds it; a checkout's are found in place."""

    def run(self):
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "focal_det/configs")
            shutil.rmtree(folder, ignore_errors=True)  # what is left of an earlier build
            shutil.copytree(ROOT / "configs", folder, ignore=_not_a_configuration)


setup(
    name="focal_det",
    version=VERSION,
    description="A complete RetinaNet with focal loss, as a Detectron2 plug-in",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="object detection, focal loss, RetinaNet, Detectron2, PyTorch, ONNX, computer vision",
    project_urls={
        "Paper": "https://arxiv.org/abs/1708.02002",
        "Detectron2": "https://github.com/facebookresearch/detectron2",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["focal_det", "focal_det.*"]),
    package_data={
        "focal_det": ["py.typed"],
        "focal_det.paper": ["*.yaml"],
        "focal_det.report": ["*.css", "*.j2"],
    },
    cmdclass={"build_py": BuildWithConfigurations},
    install_requires=CORE,
    extras_require={**EXTRAS, "dev": DEV, "all": ALL},
    entry_points={"console_scripts": ["focal-det = focal_det.__main__:main"]},
)
