"""First of all in a job: TensorFlow, imported without the notes of its C++ code."""

from hamgan.cli import streams

streams.import_tensorflow()
