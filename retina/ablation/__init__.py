"""The ablation study: many trainings that differ in a few settings, and what can be said about the differences."""
