"""From gin files to the experiment, and to the constructor of one part."""

import os
import tempfile

import gin

from hamgan import experiment
from hamgan.cli.configuration import checks, lookup, reach, roots, sources, trust
from hamgan.cli.configuration import of_data as data_settings

# What a --gin_param may name, whether the gin file speaks of it or not.
_PARAM_HEADER = (
    "from __gin__ import dynamic_registration",
    *(f"from hamgan import {module}" for module in trust.MODULES),
    "from hamgan.evaluation import features",
    "from hamgan.evaluation import protocol",
    "from hamgan.evaluation import scores",
)


def load_experiment(
    *,
    gin_files=(),
    gin_params=(),
    model_dir=None,
    protocol=None,
    trusted_modules=(),
    of_data=None,
    root=experiment.Experiment,
    header=_PARAM_HEADER,
):
    """Parses a configuration and builds the experiment from it.

    Args:
      gin_files: gin files; none: the configuration that is kept in model_dir.
      gin_params: more bindings, which win over files.
      model_dir: the run's folder, or None.
      protocol: name of a file in configs/protocols, or a gin file, that is read after all others;
        None: none.
      trusted_modules: what the configuration in model_dir may name beside the project's parts.
      of_data: {setting: value} that a data set decides (see `of_data.settled`); they win over files
        and not over gin_params. None: none.
      root: constructor of the experiment.
      header: statements that a gin_param may need, imports of what it may name.

    Raises:
      ValueError: no configuration, or one of something else, a file that isn't there, a name that
        nothing has, a value that an argument doesn't take, a gin_param that reaches nothing, a
        change to a protocol that has a name, or a configuration in model_dir that names what it may
        not.
    """
    lookup.read_files_by(sources.open_file, root=sources.ROOT)
    files = [sources.find(file) for file in gin_files]
    named = files or [trust.read_saved(model_dir, trusted_modules)]
    with sources.readable(files, gin_params):
        gin.parse_config_files_and_bindings(files, None, finalize_config=False)
    # Before the parameters: those of another kind of configuration aren't known here.
    roots.check_kind(named, root)
    protocols = [sources.protocol_file(protocol)] if protocol else []
    files = [*files, *protocols]
    with sources.readable(files, gin_params):
        gin.parse_config_files_and_bindings(
            protocols, [*header, *data_settings.statements(of_data or {}), *gin_params]
        )
    roots.check_there(named, root)
    checks.check_names(gin_params)
    data_settings.drop_unused()
    checks.check_values()
    checks.check_protocol_name(gin_params)
    reach.check_reach(files, gin_params, root)
    lookup.tell_functions()
    return gin.get_configurable(root)()


def load_constructor(constructor, text, *, gin_params=()):
    """A constructor with the settings of a gin file's text, instead of all that was read before.

    Raises:
      ValueError: the text or a parameter can't be read, or a value isn't what an argument takes.
    """
    lookup.read_files_by(sources.open_file, root=sources.ROOT)
    gin.clear_config()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "import.gin")
        with open(path, "w") as file:
            file.write(text)
        with sources.readable([path], gin_params):
            gin.parse_config_files_and_bindings([path], gin_params, finalize_config=True)
    checks.check_values()
    lookup.tell_functions()
    return gin.get_configurable(constructor)
