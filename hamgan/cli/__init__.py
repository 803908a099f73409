"""The command line: flags, and the configuration that gin files give."""
