"""What a run is asked to do: argument groups that are the seed's flags. No torch here."""

from config.checks import check_hardware as check_hardware
from config.compat import Compat as Compat
from config.data import BlockLMArgs as BlockLMArgs
from config.data import DataArgs as DataArgs
from config.data import TokenizerArgs as TokenizerArgs
from config.distill import DistillArgs as DistillArgs
from config.distill import TeacherArgs as TeacherArgs
from config.errors import ConfigError as ConfigError
from config.group import ArgGroup as ArgGroup
from config.group import flag as flag
from config.model import ModelArgs as ModelArgs
from config.run import NoArgs as NoArgs
from config.run import RunArgs as RunArgs
from config.run import parse_args as parse_args
from config.tasks import FinetuneArgs as FinetuneArgs
from config.training import CheckpointArgs as CheckpointArgs
from config.training import EvalArgs as EvalArgs
from config.training import OptimizerArgs as OptimizerArgs
from config.training import ParallelArgs as ParallelArgs
from config.training import PrecisionArgs as PrecisionArgs
from config.training import TrainArgs as TrainArgs
