"""Worlds to act in: a grid world, any Gymnasium environment, many side by side, and what is known of finite ones.

This file stays light, since every process that steps environments reads it.
"""

from __future__ import annotations

import gymnasium

GRIDWORLD = "danlu/GridWorld-v0"
"""What Gymnasium knows the grid world by; a recipe may say ``gridworld``."""

if GRIDWORLD not in gymnasium.registry:
    gymnasium.register(GRIDWORLD, entry_point="danlu.world.gridworld:GridWorld")
