"""Registers the kinds of post-training runs; imported by gemmule.train.config when one is named."""

from gemmule.posttrain.recipes import opd, preference, reward, rl, sft
from gemmule.train.recipes import alone, register_recipe

register_recipe(sft.SftConfig, alone(sft.build))
register_recipe(opd.OpdConfig, alone(opd.build))
register_recipe(preference.PreferenceConfig, alone(preference.build))
register_recipe(reward.RewardConfig, alone(reward.build))
register_recipe(rl.RlConfig, alone(rl.build))
