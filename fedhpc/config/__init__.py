"""What a run can be told, and reading it from YAML. Imports no torch and no numpy."""

from fedhpc.config.checks import check, check_files
from fedhpc.config.load import ConfigError, config_digest, dump_config, load_config
from fedhpc.config.schema import RunConfig

__all__ = ["ConfigError", "RunConfig", "check", "check_files", "config_digest", "dump_config", "load_config"]
