"""Packaging. Exact versions of everything are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """Read, not imported: fedhpc's dependencies may not be there yet."""
    text = (ROOT / "fedhpc" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError('fedhpc/__init__.py: no line __version__ = "X.Y.Z"')
    return found.group(1)


def long_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="fedhpc",
    version=version(),
    description="Federated learning over medical data on HPC clusters, on torch.distributed, without a server process",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["fedhpc", "fedhpc.*"]),
    install_requires=[
        "cryptography>=43",
        "h5py>=3.10",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "packaging>=23",
        "pillow>=10",
        "pydantic>=2.7",
        "PyYAML>=6",
        "rich>=13",
        "safetensors>=0.4",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "tensorboard>=2.16",
        "threadpoolctl>=3.5",
        "timm>=1.0",
        "tokenizers>=0.19",
        "torch>=2.11",
        "torchmetrics>=1.4",
        "torchvision>=0.26",
        "transformers>=4.44",
        "typer>=0.12",
    ],
    extras_require={
        "slurm": ["submitit>=1.5"],
        "mpi": ["mpi4py>=4"],
        "sharded": ["deepspeed>=0.19"],
        "dicom": ["pydicom>=3"],
        "privacy": ["dp-accounting>=0.6", "opacus>=1.6"],
        "generate": ["diffusers>=0.35"],
        "sheets": ["openpyxl>=3.1", "xlrd>=2"],
        "dev": [
            "diffusers>=0.35",
            "dp-accounting>=0.6",
            "hypothesis>=6",
            "mpi4py>=4",
            "mypy>=1.13",
            "opacus>=1.6",
            "openpyxl>=3.1",
            "pre-commit>=4",
            "psutil>=5.9",
            "pydicom>=3",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.15",
            "submitit>=1.5",
            "types-PyYAML>=6",
            "wheel>=0.45",
            "xlrd>=2",
        ],
    },
    entry_points={"console_scripts": ["fedhpc = fedhpc.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
