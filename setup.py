"""Packaging of HamGAN. `pip install -e .` for use, `pip install -e .[test]` for development."""

import glob
import os
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

with open("hamgan/__init__.py") as file:
    VERSION = re.search(r'^__version__ = "(.+)"$', file.read(), re.MULTILINE)[1]


def for_an_index(text):
    """The README where nothing lies beside it: without images and their captions, links into the
    repository as plain text.
    """
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)\s*(\*[^*]+\*\s*)?", "", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]*\)", r"\1", text)


with open("README.md") as file:
    README = for_an_index(file.read())


class BuildWithConfigurations(build_py):
    """Puts configs/ into the package, where commands find them by name wherever they are started.

    (A mapping of folders to packages would do so too, but it makes another thing of an editable
    installation than a folder on the path.)
    """

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for path in glob.glob("configs/**/*.gin", recursive=True):
            target = os.path.join(self.build_lib, "hamgan", path)
            self.mkpath(os.path.dirname(target))
            self.copy_file(path, target)


MLFLOW = ["mlflow-skinny>=3", "sqlalchemy>=2", "alembic"]
# Exports: the one converter that takes TensorFlow's functions, and a runtime to compare by.
ONNX = ["onnx", "onnxruntime", "tf2onnx>=1.17"]
SWEEP = [
    "optuna>=5,<6",
    # What Optuna keeps studies in; PostgreSQL by psycopg, with its library in the wheel.
    "sqlalchemy>=2",
    "psycopg[binary]>=3.2",
]
WANDB = ["wandb>=0.20"]
# Not Gradio, which asks for an older Pillow and over thirty more packages.
WEB = ["starlette>=1,<2", "uvicorn>=0.30"]

setup(
    name="hamgan",
    version=VERSION,
    description=(
        "Class-conditional GANs with matrix decompositions for global "
        "context, on TensorFlow and Cloud TPUs"
    ),
    long_description=README,
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="gan image-generation matrix-decomposition attention tensorflow keras tpu",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    project_urls={
        "Paper": "https://arxiv.org/abs/2109.04553",
        "Paper (ICLR)": "https://openreview.net/forum?id=1FvkSpWosOl",
    },
    cmdclass={"build_py": BuildWithConfigurations},
    entry_points={
        "console_scripts": [
            *(
                f"hamgan-{name} = hamgan.cli.commands:{name}"
                for name in (
                    "train evaluate sample export explore sweep doctor inspect segment serve"
                ).split()
            ),
            "hamgan-prepare = data_prep.commands:run",
        ]
    },
    packages=find_packages(include=["hamgan", "hamgan.*", "data_prep"]),
    package_data={
        "hamgan.serving": ["page.css", "page.html", "page.js"],
        "hamgan.tpu": ["prices.json"],
    },
    python_requires=">=3.10,<3.13",
    install_requires=[
        # 2.20 is the newest that tensorflow-tpu has (requirements-tpu.txt: for TPU VMs), 2.21 the
        # newest that was tested. tf-keras, which tensorflow-hub and tensorflow-probability need, is
        # made for exactly one TensorFlow, and asks for it: both come of one minor.
        "tensorflow>=2.20,<2.22",
        "tf-keras>=2.20,<2.22",
        # The newest release; hamgan/tfgan.py makes this one importable.
        "tensorflow-gan==2.1.0",
        "tensorflow-hub>=0.16.1",
        # 0.25 is the last release that was made for TensorFlow 2.18 or newer.
        "tensorflow-probability>=0.25",
        "tensorflow-datasets>=4.9.7",
        # Networks are Keras 3 layers; 3.10 is the first with all that they use on TensorFlow 2.20.
        # 3.15 is the newest that was measured; optimizers and dtype policies change between minors.
        "keras>=3.10,<3.16",
        "absl-py",
        # Dynamic registration works with Keras 3 from 0.5.0 on.
        # hamgan/cli/configuration/lookup.py reads what gin has parsed, by names that aren't public.
        "gin-config>=0.5.0,<0.6",
        # tensorflow-datasets imports it without asking for it.
        "importlib_resources",
        # The checksums of TFRecord files, at 10 GB/s.
        "google-crc32c",
        "matplotlib",
        "numpy",
        "pillow",
        "psutil",
        "scikit-learn",
        # TensorFlow 2.20 brings it, 2.21 no longer does.
        "tensorboard",
        "scipy",
        "tqdm",
        # tensorflow-gan imports distutils, which Python 3.12 has only through setuptools;
        # tensorflow-hub imports pkg_resources, about which 81 warns and which newer ones drop.
        "setuptools<81",
    ],
    extras_require={
        "onnx": ONNX,
        # Films as MP4.
        "video": ["av", "imageio"],
        # scripts/serve.py.
        "web": WEB,
        # --sink=mlflow. The database store is the one that MLflow still develops.
        "mlflow": MLFLOW,
        # --sink=wandb.
        "wandb": WANDB,
        # scripts/sweep.py. 5 is the first with RetryHeartbeatStaleTrialCallback's name.
        "sweep": SWEEP,
        # Reads published segmentation weights (scripts/segment.py import); .npz needs none.
        "torch": ["torch"],
        "test": [
            *MLFLOW,
            *ONNX,
            *SWEEP,
            *WANDB,
            *WEB,
            # Inputs that nobody thought of (tests/test_layer_use.py).
            "hypothesis",
            # One version, so that it finds the same everywhere.
            "mypy==2.4.*",
            "packaging",
            # Drives the Chromium that the system has; brings none.
            "playwright",
            "pot",
            "prdc",
            "pytest",
            "pytest-xdist",
            # One version, so that its formatting is one.
            "ruff==0.17.*",
        ],
    },
)
