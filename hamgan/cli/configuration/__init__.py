"""From gin files to the parts of a run, and back to one file: the only room that knows gin."""

from hamgan.cli.configuration.loading import load_constructor, load_experiment
from hamgan.cli.configuration.of_data import settled, value_of
from hamgan.cli.configuration.saved import (
    changed_settings,
    resolved_configuration,
    setting_differs,
    settings_of_run,
    settle_configuration,
)
from hamgan.cli.configuration.sweeping import load_point, load_sweep
from hamgan.cli.configuration.trust import check_saved

__all__ = [
    "changed_settings",
    "check_saved",
    "load_constructor",
    "load_experiment",
    "load_point",
    "load_sweep",
    "resolved_configuration",
    "setting_differs",
    "settings_of_run",
    "settle_configuration",
    "settled",
    "value_of",
]
