"""Packaging of HamGAN. `pip install -e .` for use, `pip install -e .[test]` for development."""

from setuptools import find_packages, setup

SWEEP = [
    "optuna>=5,<6",
    # What Optuna keeps studies in; PostgreSQL by psycopg, with its library in the wheel.
    "sqlalchemy>=2",
    "psycopg[binary]>=3.2",
]

setup(
    name="hamgan",
    version="0.1.0",
    description=(
        "Class-conditional GANs with matrix decompositions for global "
        "context, on TensorFlow and Cloud TPUs"
    ),
    license="Apache-2.0",
    packages=find_packages(include=["hamgan", "hamgan.*", "data_prep"]),
    package_data={"hamgan.tpu": ["prices.json"]},
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
        # scripts/sweep.py. 5 is the first with RetryHeartbeatStaleTrialCallback's name.
        "sweep": SWEEP,
        # Reads published segmentation weights (scripts/segment.py import); .npz needs none.
        "torch": ["torch"],
        "test": [
            *SWEEP,
            # Inputs that nobody thought of (tests/test_layer_use.py).
            "hypothesis",
            # One version, so that it finds the same everywhere.
            "mypy==2.4.*",
            "packaging",
            "pot",
            "prdc",
            "pytest",
            "pytest-xdist",
            # One version, so that its formatting is one.
            "ruff==0.17.*",
        ],
    },
)
