"""Merging: averages, LERP and SLERP of task vectors layer by layer, LITI, and WARP's loop."""
