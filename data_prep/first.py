"""First of all in a job: its flags are read, and TensorFlow is imported without the notes of its
C++ code.
"""

from data_prep import options
from hamgan.cli import streams

options.read()
streams.import_tensorflow()
