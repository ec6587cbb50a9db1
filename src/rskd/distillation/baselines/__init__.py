"""Published distillation methods and controls, to compare with under the same roof."""
