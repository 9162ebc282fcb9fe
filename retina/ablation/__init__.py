"""The ablation study: many trainings that differ in a few settings, and the evidence for their differences."""
