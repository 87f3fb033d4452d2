"""Makes the kinds of post-training runs known.

Whatever reads the settings of a run that may be a post-training run imports this module first.
"""

from gemmule.posttrain.recipes import opd, preference, reward, rl, sft
from gemmule.train.recipes import register_recipe

register_recipe(sft.SftConfig, sft.build)
register_recipe(opd.OpdConfig, opd.build)
register_recipe(preference.PreferenceConfig, preference.build)
register_recipe(reward.RewardConfig, reward.build)
register_recipe(rl.RlConfig, rl.build)
