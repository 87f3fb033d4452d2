"""Registers the kinds of post-training runs; imported by gemmule.train.config when one is named."""

from gemmule.posttrain.recipes import opd, preference, reward, rl, sft
from gemmule.train.recipes import register_recipe

register_recipe(sft.SftConfig, sft.build)
register_recipe(opd.OpdConfig, opd.build)
register_recipe(preference.PreferenceConfig, preference.build)
register_recipe(reward.RewardConfig, reward.build)
register_recipe(rl.RlConfig, rl.build)
