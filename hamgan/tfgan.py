"""TF-GAN on current TensorFlow: the one module that imports `tensorflow_gan`.

TF-GAN 2.1.0, the newest release, asks for `tf.estimator`, which TensorFlow dropped in 2.16, and for
`distutils`, which Python dropped in 3.12. Nothing that this project uses needs either. A plain
import is tried first, so that a release which imports by itself is taken as it is; only when that
fails is the import repeated with stand-ins, which are gone again when it is over.

Its losses and scores are the oracles that `hamgan.losses` and `hamgan.evaluation.metrics` are
tested against; nothing that trains or evaluates imports this, which takes most of a second.
"""

import contextlib
import importlib
import importlib.util
import sys
import types
import warnings

import tensorflow as tf

__all__ = [
    "INCEPTION_TFHUB",
    "classifier_score_from_logits",
    "frechet_classifier_distance_from_activations",
    "kernel_classifier_distance_and_std_from_activations",
    "kernel_classifier_distance_from_activations",
    "least_squares_discriminator_loss",
    "least_squares_generator_loss",
    "modified_discriminator_loss",
    "modified_generator_loss",
    "trace_sqrt_product",
    "wasserstein_discriminator_loss",
    "wasserstein_generator_loss",
    "wasserstein_hinge_discriminator_loss",
    "wasserstein_hinge_generator_loss",
]

_ESTIMATOR = "tensorflow_gan.python.estimator"


@contextlib.contextmanager
def _stand_ins():
    """While active, TF-GAN finds an empty estimator package, `tf.estimator` and distutils."""
    if importlib.util.find_spec("distutils") is None:
        # Importing setuptools installs its copy of distutils under that name.
        importlib.import_module("setuptools")
    estimator = types.ModuleType(_ESTIMATOR)
    estimator.__all__ = []
    sys.modules[_ESTIMATOR] = estimator
    lacks_estimator = not hasattr(tf, "estimator")
    if lacks_estimator:
        tf.estimator = types.SimpleNamespace(SessionRunHook=tf.compat.v1.train.SessionRunHook)
    try:
        yield
    finally:
        # Other code decides by hasattr(tf, "estimator") which TensorFlow it runs on.
        if lacks_estimator:
            del tf.estimator
        sys.modules.pop(_ESTIMATOR, None)


def _forget_partial_import():
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorflow_gan"]:
        del sys.modules[name]


def _import_tensorflow_gan():
    """Returns the module `tensorflow_gan`.

    Raises:
      ImportError: when it, or a package it needs, is not installed (with the command that installs
        it), or when it fails to import even with the stand-ins.
    """
    with warnings.catch_warnings():
        # It compares versions with distutils; users can do nothing about that warning.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return importlib.import_module("tensorflow_gan")
        except (ImportError, AttributeError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "tensorflow_gan":
                raise _missing("tensorflow_gan") from error
        _forget_partial_import()
        try:
            with _stand_ins():
                return importlib.import_module("tensorflow_gan")
        except ModuleNotFoundError as error:
            _forget_partial_import()
            raise _missing(error.name) from error
        except (ImportError, AttributeError) as error:
            _forget_partial_import()
            raise ImportError(
                f"tensorflow_gan cannot be imported on TensorFlow {tf.__version__}: {error}. This "
                "project is tested with tensorflow-gan 2.1.0 and the versions pinned in setup.py; "
                "install those with: python -m pip install -e ."
            ) from error


def _missing(package):
    return ImportError(
        "TF-GAN's losses and scores need tensorflow_gan, and its import did not find the package "
        f"{package!r}. "
        "Install the pinned dependencies from the repository's root: python -m pip install -e .  "
        "(By hand: python -m pip install tensorflow-gan==2.1.0 tensorflow-hub "
        "tensorflow-probability tf-keras 'setuptools<81', tf-keras in TensorFlow's minor version.)",
        name=package,
    )


_tfgan = _import_tensorflow_gan()

wasserstein_hinge_discriminator_loss = _tfgan.losses.wargs.wasserstein_hinge_discriminator_loss
wasserstein_hinge_generator_loss = _tfgan.losses.wargs.wasserstein_hinge_generator_loss
modified_discriminator_loss = _tfgan.losses.wargs.modified_discriminator_loss
modified_generator_loss = _tfgan.losses.wargs.modified_generator_loss
least_squares_discriminator_loss = _tfgan.losses.wargs.least_squares_discriminator_loss
least_squares_generator_loss = _tfgan.losses.wargs.least_squares_generator_loss
wasserstein_discriminator_loss = _tfgan.losses.wargs.wasserstein_discriminator_loss
wasserstein_generator_loss = _tfgan.losses.wargs.wasserstein_generator_loss

classifier_score_from_logits = _tfgan.eval.classifier_score_from_logits
frechet_classifier_distance_from_activations = (
    _tfgan.eval.frechet_classifier_distance_from_activations
)
kernel_classifier_distance_from_activations = (
    _tfgan.eval.kernel_classifier_distance_from_activations
)
kernel_classifier_distance_and_std_from_activations = (
    _tfgan.eval.kernel_classifier_distance_and_std_from_activations
)

# Not among its public names: the part of its FID that takes the time, of covariances instead of
# activations.
trace_sqrt_product = _tfgan.eval.classifier_metrics.trace_sqrt_product

INCEPTION_TFHUB = _tfgan.eval.INCEPTION_TFHUB
