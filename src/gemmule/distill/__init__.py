"""Knowledge distillation at full vocabulary."""
