"""GLM: attention, layers, the stack, the vocabulary, heads. Imports config and mpu only."""

from model.build import HeadSpec as HeadSpec
from model.build import add_head as add_head
from model.build import build_model as build_model
from model.build import parameter_groups as parameter_groups
from model.glm import GLMModel as GLMModel
