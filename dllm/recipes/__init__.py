"""Recipes: settings that `dllm tune` found for a model and a task, with what speaks for them."""

from __future__ import annotations

from dllm.recipes.recipe import Recipe, read_recipe, recipe_settings

__all__ = ["Recipe", "read_recipe", "recipe_settings"]
